"""Runs inside the trainer's image: Ray's head as KubeRay starts it, until its probe's answer is the good one."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request

START = "ulimit -n 65536; ray start --head --num-cpus=1 --dashboard-host=0.0.0.0 --disable-usage-stats --block"
PROBE = "http://127.0.0.1:52365/api/healthz"
PATIENCE_S = 180


def main() -> int:
    """Start, wait for the probe, ask as the init container of a worker does, end."""
    with subprocess.Popen(["/bin/bash", "-c", "--", START]) as ray:
        try:
            answer = wait_for_probe(ray)
            print(answer)
            if "success" not in answer:
                return 1
            return subprocess.run(["ray", "health-check", "--address", "127.0.0.1:6379"], check=False).returncode
        finally:
            ray.kill()


def wait_for_probe(ray: subprocess.Popen[bytes]) -> str:
    """The probe's first answer with status 200, else why there is none."""
    deadline, last = time.monotonic() + PATIENCE_S, "never asked"
    while ray.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(PROBE, timeout=5) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, OSError) as error:
            last = str(error)
        time.sleep(0.5)
    return f"Ray's head did not become healthy: {last}"


if __name__ == "__main__":
    sys.exit(main())
