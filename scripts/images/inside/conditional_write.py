"""Runs inside the store's image: the server takes a conditional write once, and refuses the second one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

FOLDER = Path("/tmp/store")  # noqa: S108 (a file system of the container's own)
ENDPOINT = "http://127.0.0.1:8333"
PATIENCE_S = 60
ANONYMOUS = {"identities": [{"name": "anonymous", "actions": ["Admin", "Read", "Write", "List"]}]}


def main() -> int:
    """Start the server, write twice, replace by ETag, and name every answer that is not the expected one."""
    FOLDER.mkdir()
    config = FOLDER / "identities.json"
    config.write_text(json.dumps(ANONYMOUS))
    with subprocess.Popen(server(config)) as weed:
        try:
            wait_until_ready(weed)
            new, other = {"If-None-Match": "*"}, {"If-Match": '"00000000000000000000000000000000"'}
            answers = [put("bucket/object", headers) for headers in (new, new, other)]
        finally:
            weed.kill()
    print("conditional writes:", *answers)
    return answers != [200, 412, 412]


def server(config: Path) -> list[str]:
    """Everything in one process, on loopback."""
    return [
        "weed", "-logtostderr=true", "server", f"-dir={FOLDER}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=16", "-master.electionTimeout=1s",
        f"-filer.localSocket={FOLDER / 'filer.sock'}", "-s3=true", "-s3.port=8333", f"-s3.config={config}",
        f"-s3.localSocket={FOLDER / 's3.sock'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip


def wait_until_ready(weed: subprocess.Popen[bytes]) -> None:
    """Wait until a bucket exists and an object can be written into it."""
    deadline = time.monotonic() + PATIENCE_S
    while weed.poll() is None and time.monotonic() < deadline:
        if put("bucket", {}) in {200, 409} and put("bucket/ready", {}) == 200:
            return
        time.sleep(0.2)
    raise SystemExit("the server did not become ready")


def put(path: str, headers: dict[str, str]) -> int:
    """The status of a PUT; 0 when nobody answers."""
    data = b"" if "/" not in path else b"data"
    request = urllib.request.Request(f"{ENDPOINT}/{path}", data=data, headers=headers, method="PUT")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
