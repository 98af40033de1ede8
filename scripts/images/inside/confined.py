"""Runs inside an image as a pod would: what holds for every image. Prints each problem; exits 1 when there is one.

Argument: what may lack bytecode, a regular expression for paths.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

USER = 65532
NOT_HERE = {
    *("gcc", "g++", "cc", "c++", "clang", "nvcc", "make", "cmake"),
    *("pip", "pip3", "uv", "uvx", ".bash_history", ".python_history"),
}
SYSTEM = {"proc", "sys", "dev", "tmp"}
PACKAGES = Path("/opt/venv/lib/python3.11/site-packages")
COMPILED_SHARE = 0.99
"""Some packages ship templates and tests for other Pythons, which do not compile."""


def problems(may_lack_bytecode: re.Pattern[str]) -> Iterator[str]:
    """What a pod would stumble over, and what an image should not have."""
    if (os.getuid(), os.getgid()) != (USER, USER):
        yield f"runs as {os.getuid()}:{os.getgid()}, expected {USER}:{USER}"
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        yield "the root is writable: this check does not run the image as a pod would"
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        yield "there is a network besides loopback: this check does not run the image as a pod would"
    if os.environ.get("HOME") != "/tmp":  # noqa: S108 (where pods have a volume of their own)
        yield "HOME is not /tmp, the only place that a pod can write"
    yield from (f"{path} is in the image" for path in files() if path.name in NOT_HERE)
    yield from (f"{path} was left by the build" for path in left_folders())
    modules = [path for path in PACKAGES.rglob("*.py") if not may_lack_bytecode.search(str(path))]
    compiled = sum(Path(importlib.util.cache_from_source(str(path))).exists() for path in modules)
    if compiled < COMPILED_SHARE * len(modules):
        yield f"{len(modules) - compiled} of {len(modules)} modules have no bytecode"


def files() -> Iterator[Path]:
    """Every file and link that this user may see."""
    for folder, folders, names in os.walk("/"):
        if folder == "/":
            folders[:] = [name for name in folders if name not in SYSTEM]
        yield from (Path(folder, name) for name in names)


def left_folders() -> Iterator[Path]:
    """Folders of the build with something in them."""
    for folder in map(Path, ("/src", "/tools", "/packages")):
        if folder.exists() and any(folder.iterdir()):
            yield folder


if __name__ == "__main__":
    found = list(problems(re.compile(sys.argv[1])))
    print("\n".join(found))
    sys.exit(bool(found))
