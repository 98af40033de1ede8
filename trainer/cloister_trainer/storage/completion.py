"""When a model's folder on a node is complete: a file in it says so, with the digests, and says who checked them.

Nothing waits for the disk when a model was fetched: that would take longer than fetching it. Until the machine boots
again its page cache answers for the bytes, and names, sizes and times are enough to trust the folder. After another
boot, which may have lost what was not on disk yet, every file is hashed once more.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cloister_trainer.records import FileDigest, ModelRecord
from cloister_trainer.storage.base import OWN_PREFIX

COMPLETION_FILE = f"{OWN_PREFIX}complete.json"
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
PARALLEL_HASHES = 4
KEPT_BOOTS = 32
"""Several nodes may share a cache on one volume; each has its own boots."""


def say_complete(folder: Path, files: Sequence[FileDigest]) -> None:
    """Record the digests of a folder's files, which were hashed since this boot."""
    recorded = [{**each.to_api(), "mtimeNs": (folder / each.name).stat().st_mtime_ns} for each in files]
    _write(folder, recorded, [_boot_id()])


def completed(folder: Path, model: ModelRecord) -> list[FileDigest] | None:
    """The weight files' digests, sorted by name, when the folder is complete and whole; else None.

    What cannot be used is deleted.
    """
    if not folder.exists():
        return None
    try:
        recorded = json.loads((folder / COMPLETION_FILE).read_text())
        files = {each["name"]: each for each in recorded["files"]}
        whole = all(files[small.name]["sha256"] == small.sha256 for small in model.small_files)
        whole = whole and all(_untouched(folder, each) for each in files.values())
        whole = whole and _checked_since_boot(folder, recorded)
        digests = [FileDigest.model_validate(_without_time(files[each.name])) for each in model.weight_files]
    except (OSError, ValueError, KeyError):
        whole = False
    if whole:
        return sorted(digests, key=lambda each: each.name)
    shutil.rmtree(folder)
    return None


def _untouched(folder: Path, file: dict[str, Any]) -> bool:
    stat = (folder / file["name"]).stat()
    return (stat.st_size, stat.st_mtime_ns) == (file["size"], file["mtimeNs"])


def _checked_since_boot(folder: Path, recorded: dict[str, Any]) -> bool:
    """Whether the digests are right, hashing the files when this boot has not seen them."""
    boot = _boot_id()
    if boot in recorded["boots"]:
        return True
    with ThreadPoolExecutor(PARALLEL_HASHES) as pool:
        right = all(pool.map(lambda file: _sha256(folder / file["name"]) == file["sha256"], recorded["files"]))
    if right:
        _write(folder, recorded["files"], [*recorded["boots"], boot][-KEPT_BOOTS:])
    return right


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, files: list[dict[str, Any]], boots: list[str]) -> None:
    temporary = folder / f"{OWN_PREFIX}{secrets.token_hex(8)}"
    with temporary.open("w") as file:
        json.dump({"files": files, "boots": boots}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / COMPLETION_FILE)


def _boot_id() -> str:
    """Which boot of which machine this is; one of its own where the kernel does not say."""
    try:
        return BOOT_ID_FILE.read_text().strip()
    except OSError:
        return secrets.token_hex(16)


def _without_time(file: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in file.items() if key != "mtimeNs"}
