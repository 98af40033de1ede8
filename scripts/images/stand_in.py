"""A stand-in for the base image, made of Debian packages, for machines that reach no image registry.

It has the same Debian release and Python 3.11, at Debian's patch level. What is built on it is for tests.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from images.engine import BuildError, checked, output

STAND_IN = "docker.io/library/python:3.11-slim-bookworm"
"""The default of the Dockerfiles' BASE_IMAGE."""
RELEASE = "bookworm"
INCLUDED = "python3,python3-venv,ca-certificates"
UNUSED = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def make_root(folder: Path) -> Path:
    """Fill a new folder with Debian and Python, from the mirror that this machine's apt uses. Raises BuildError."""
    checked(["debootstrap", "--variant=minbase", f"--include={INCLUDED}", RELEASE, str(folder), _mirror()])
    for unused in UNUSED:
        for entry in (folder / unused).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    # The Python image has its interpreter here.
    for name in ("python3.11", "python3", "python"):
        (folder / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
    return folder


def _mirror() -> str:
    listed = output(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]) or ""
    for line in listed.splitlines():
        site, _, release = line.partition(" ")
        if release == RELEASE:
            return site
    raise BuildError(
        f"This machine's apt has no Debian {RELEASE} to make a base image of. Use docker or podman, or name an image "
        "that can be pulled in BASE_IMAGE."
    )
