"""The object store of the tests never outlives whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
START_AND_STAY = """
import sys
from pathlib import Path
from support.seaweedfs import SeaweedFS
with SeaweedFS(Path(sys.argv[1])) as store:
    print(store.pid, flush=True)
    sys.stdin.read()
"""


def test_a_killed_parent_takes_the_store_with_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_STAY, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(TESTS)},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        server = Path("/proc") / parent.stdout.readline().strip()
        assert "weed" in (server / "cmdline").read_text()
        parent.kill()
    try:
        deadline = time.monotonic() + 30
        while _runs(server):
            assert time.monotonic() < deadline, "the server still runs"
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(server.name), signal.SIGKILL)


def _runs(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
