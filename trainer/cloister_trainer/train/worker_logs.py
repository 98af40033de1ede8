"""Each rank's log: a file on its node, whose end is uploaded when the rank ends, however it ends."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.run import Run
from cloister_trainer.storage import Storage

UPLOADED_BYTES = 8 * 1024 * 1024
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_QUIET = ("filelock", "urllib3", "botocore", "boto3", "s3transfer", "DeepSpeed", "ray")


class RankLog:
    """Python's log records, and stacks after a crash, in one file; what Python logs also goes to standard error.

    Rows of the dataset are never logged: our own code logs no content, and libraries log from WARNING on. A disk that
    takes no more costs lines of the log and nothing else: it must not hide why the rank ended.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".stored").unlink(missing_ok=True)
        self.file = path.open("a", buffering=1, encoding="utf-8")
        formatter = logging.Formatter(f"{_FORMAT[:12]}rank {rank} {_FORMAT[12:]}")
        self._handlers: list[logging.Handler] = [logging.StreamHandler(self.file), logging.StreamHandler(sys.stderr)]
        root = logging.getLogger()
        for handler in self._handlers:
            handler.setFormatter(formatter)
            root.addHandler(handler)
        root.setLevel(logging.WARNING)
        logging.getLogger("cloister_trainer").setLevel(logging.INFO)
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        faulthandler.enable(self.file)

    def trace(self, error: BaseException) -> None:
        """The full trace, for whoever reads the log; a user sees only the sentence."""
        with suppress(OSError):
            self.file.write("".join(traceback.format_exception(error)))

    def stacks(self) -> None:
        """The stacks of all threads."""
        with suppress(OSError):
            self.file.write(f"Stacks of process {os.getpid()}:\n")
        faulthandler.dump_traceback(self.file, all_threads=True)

    def close(self) -> None:
        """Stop writing to the file."""
        root = logging.getLogger()
        for handler in self._handlers:
            root.removeHandler(handler)
        faulthandler.disable()
        with suppress(OSError):
            self.file.close()


def upload_log(storage: Storage, path: Path, uri: str) -> None:
    """Store the last 8 MiB of a rank's log. A store that fails is only told: it must not hide why the rank ended."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - UPLOADED_BYTES))
            storage.write(uri, file.read())
        path.with_suffix(".stored").touch()
    except (CloisterError, OSError) as error:
        sys.stderr.write(f"The log {path} could not be stored: {error}\n")


def upload_left_logs(storage: Storage, folder: Path, run: Run, attempt: int) -> None:
    """Store the logs on this machine of ranks that ended without doing it themselves (killed, or out of memory)."""
    for path in sorted(folder.glob("rank-*.log")):
        if not path.with_suffix(".stored").exists():
            upload_log(storage, path, run.layout.rank_log(attempt, int(path.stem.removeprefix("rank-"))))
