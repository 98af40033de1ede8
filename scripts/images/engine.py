"""What builds images and runs containers: docker or podman when they answer, else buildah and runc as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from images.image import ROOT, Image

USER = 65532
BASE_IMAGE_ENVIRONMENT = "BASE_IMAGE"


class BuildError(Exception):
    """Images cannot be built or run here; the message is a sentence for whoever can change that."""


class Engine(Protocol):
    """How images are built and containers run on this machine."""

    name: str

    def build(self, image: Image, arguments: Mapping[str, str], secrets: Mapping[str, Path]) -> None:
        """Build the image under its tag. Raises BuildError."""

    def identity(self, image: Image) -> str | None:
        """The image's id; None when it is not there."""

    def save(self, image: Image, archive: Path) -> None:
        """Write the image into a file that is not there yet."""

    def run(
        self, image: Image, command: Sequence[str], *, stdin: str = "", mounts: Mapping[Path, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a pod of the chart does: uid 65532, read-only root, no capability, no network but loopback.

        /tmp and /dev/shm are writable; `mounts` (host's path to container's) are not. Output is captured.
        """


class Docker:
    """docker, or podman, which takes the same arguments."""

    def __init__(self, program: str) -> None:
        self.name = program

    def build(self, image: Image, arguments: Mapping[str, str], secrets: Mapping[str, Path]) -> None:
        """Build with BuildKit or podman's own builder."""
        command = [self.name, "build", "-t", image.tag, "-f", str(image.dockerfile), *build_options(arguments, secrets)]
        checked([*command, str(ROOT)], environment={"DOCKER_BUILDKIT": "1"})

    def identity(self, image: Image) -> str | None:
        """The image's id; None when it is not there."""
        return output([self.name, "image", "inspect", "--format", "{{.Id}}", image.tag])

    def save(self, image: Image, archive: Path) -> None:
        """Write a docker-archive, which is the default of both programs."""
        checked([self.name, "save", "-o", str(archive), image.tag])

    def run(
        self, image: Image, command: Sequence[str], *, stdin: str = "", mounts: Mapping[Path, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one container and remove it."""
        volumes = [f"--volume={source}:{target}:ro" for source, target in (mounts or {}).items()]
        isolation = (
            "--read-only", f"--user={USER}:{USER}", "--network=none", "--cap-drop=ALL",
            "--security-opt=no-new-privileges", "--tmpfs=/tmp:exec,mode=1777", "--shm-size=1g",
        )  # fmt: skip
        whole = [self.name, "run", "--rm", "-i", *isolation, *volumes, f"--entrypoint={command[0]}", image.tag]
        return captured([*whole, *command[1:]], stdin)


def build_options(arguments: Mapping[str, str], secrets: Mapping[str, Path]) -> list[str]:
    """Options that docker, podman and buildah share."""
    return [
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
    ]


def answering(programs: Sequence[str] = ("docker", "podman")) -> str | None:
    """The first program whose daemon answers: a client alone may be installed."""
    for program in programs:
        if shutil.which(program) and captured([program, "info"]).returncode == 0:
            return program
    return None


def checked(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command with its output shown. Raises BuildError when it fails."""
    done = subprocess.run(command, check=False, env={**os.environ, **(environment or {})}, stdout=sys.stderr)
    if done.returncode != 0:
        raise BuildError(f"`{' '.join(command[:3])} …` ended with {done.returncode}; its last lines say why.")


def captured(command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command; nothing is shown."""
    return subprocess.run(command, check=False, input=stdin, capture_output=True, text=True)


def output(command: Sequence[str]) -> str | None:
    """What a command writes, without the end of the line; None when it fails."""
    done = captured(command)
    return done.stdout.strip() if done.returncode == 0 else None
