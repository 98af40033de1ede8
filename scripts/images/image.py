"""What an image is built from, and where what is built lies."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".build" / "images"
NAMES = ("operator", "trainer", "store")
COPIED = re.compile(r"^COPY (?!--from)(.+) \S+$", re.MULTILINE)
IGNORED = {"__pycache__"}


@dataclass(frozen=True)
class Image:
    """One of the images in `images/`."""

    name: str

    @property
    def tag(self) -> str:
        """What the image is called on this machine."""
        return f"localhost/cloister/{self.name}:dev"

    @property
    def dockerfile(self) -> Path:
        """How it is built, from the repository's root."""
        return ROOT / "images" / self.name / "Dockerfile"

    @property
    def archive(self) -> Path:
        """The built image as an uncompressed docker-archive, which `ctr images import` and `docker load` read."""
        return BUILT / f"{self.name}.tar"

    @property
    def sbom(self) -> Path:
        """What is in the image: CycloneDX, JSON."""
        return BUILT / f"{self.name}.sbom.json"

    @property
    def stamp(self) -> Path:
        """From what the archive was built, and what it became."""
        return BUILT / f"{self.name}.json"

    def copied(self) -> list[str]:
        """What the Dockerfile copies from the repository, relative to its root."""
        return [source for match in COPIED.finditer(self.dockerfile.read_text()) for source in match[1].split()]

    def inputs(self) -> Iterator[Path]:
        """Every file that the image is built from, sorted within each part."""
        yield from (self.dockerfile, ROOT / ".dockerignore")
        for source in self.copied():
            path = ROOT / source
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            yield from (file for file in files if file.is_file() and not _ignored(file))

    def fingerprint(self, *more: str) -> str:
        """A digest of all inputs and of `more`."""
        digest = hashlib.sha256("\0".join(more).encode())
        for file in self.inputs():
            digest.update(f"\0{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def revision(self) -> str:
        """The last commit that changed an input, with `-dirty` when one differs from it; unknown outside of git."""
        paths = [str(self.dockerfile.relative_to(ROOT)), ".dockerignore", *self.copied()]
        commit = _git("log", "-1", "--format=%H", "--", *paths)
        if not commit:
            return "unknown"
        return f"{commit}-dirty" if _git("status", "--porcelain", "--", *paths) else commit


def version() -> str:
    """The version that the trainer's package has; all parts have the same."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "trainer" / "pyproject.toml").read_text(), re.MULTILINE)
    assert found, "trainer/pyproject.toml has no version"
    return found[1]


def _ignored(file: Path) -> bool:
    return any(part in IGNORED or part.endswith(".egg-info") for part in file.relative_to(ROOT).parts)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
