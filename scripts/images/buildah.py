"""Images without a daemon and without an image registry: buildah builds, runc runs; as root, on Debian."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from images.container_spec import container_spec
from images.engine import BASE_IMAGE_ENVIRONMENT, BuildError, build_options, captured, checked, output
from images.image import ROOT, Image
from images.stand_in import STAND_IN, make_root

PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "runc": "runc"}
"""Program and the Debian package that has it."""
RUN_ROOT = "/run/cloister-images"
LARGE = "trainer"
"""The image whose older layers would fill a disk: 6 GB for each change of its packages."""


class Buildah:
    """buildah with a storage of its own in the user's cache, so that nothing else on the machine sees its images."""

    name = "buildah"

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise BuildError("Neither docker nor podman answers here, and buildah needs root: run this as root.")
        _install_missing()
        self.folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloister" / "images"
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)

    def build(self, image: Image, arguments: Mapping[str, str], secrets: Mapping[str, Path]) -> None:
        """Build from the stand-in for the base image, or from the image that BASE_IMAGE names, which is pulled."""
        with self._lock():
            pull = "--pull" if BASE_IMAGE_ENVIRONMENT in arguments else "--pull-never"
            if pull == "--pull-never":
                self._make_stand_in()
            # chroot: runc and crun need more of the host's cgroups than a container of CI has.
            isolation = ["--isolation=chroot", "--network=host", "--layers", "--force-rm", pull]
            self._forget_older_layers(image)
            options = [*isolation, *build_options(arguments, secrets), "-t", image.tag, "-f", str(image.dockerfile)]
            checked(self._command("bud", *options, str(ROOT)), self._environment())

    def identity(self, image: Image) -> str | None:
        """The image's id; None when it is not there."""
        return self._image_id(image.tag)

    def save(self, image: Image, archive: Path) -> None:
        """Write a docker-archive; its layers stay uncompressed."""
        checked(self._command("push", "-q", image.tag, f"docker-archive:{archive}:{image.tag}"), self._environment())

    def run(
        self, image: Image, command: Sequence[str], *, stdin: str = "", mounts: Mapping[Path, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a container with runc in namespaces of its own; it sees no interface but loopback."""
        with self._mounted(image) as root, tempfile.TemporaryDirectory(dir=self.temporary) as bundle:
            hosts = Path(bundle) / "hosts"
            hosts.write_text("127.0.0.1 localhost container\n::1 localhost\n")
            spec = container_spec(root, command, self._variables(image), {hosts: "/etc/hosts", **(mounts or {})})
            (Path(bundle) / "config.json").write_text(json.dumps(spec))
            name = f"cloister-images-{uuid.uuid4().hex[:12]}"
            return captured(["runc", "--root", f"{RUN_ROOT}/runc", "run", "--bundle", bundle, name], stdin)

    def _forget_older_layers(self, image: Image) -> None:
        """Remove what was built from another Dockerfile or other requirements, before more is built."""
        if image.name != LARGE:
            return
        recipe = [image.dockerfile, *(ROOT / file for file in image.copied() if file.endswith(".txt"))]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in recipe)).hexdigest()
        built_from = self.folder / f"{image.name}.recipe"
        if built_from.exists() and built_from.read_text() != digest:
            captured(self._command("rmi", image.tag))
            captured(self._command("rmi", "--prune"))
        built_from.write_text(digest)

    def _make_stand_in(self) -> None:
        if self._image_id(STAND_IN):
            return
        with tempfile.TemporaryDirectory(dir=self.temporary) as folder:
            root = make_root(Path(folder) / "root")
            container = self._output("from", "scratch")
            checked(self._command("add", "-q", container, str(root), "/"), self._environment())
            variables = ("PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")
            environment = [part for variable in variables for part in ("--env", variable)]
            self._output("config", "--cmd", "python3", *environment, container)
            self._output("commit", "-q", "--rm", container, STAND_IN)

    @contextmanager
    def _mounted(self, image: Image) -> Iterator[Path]:
        container = self._output("from", "--pull-never", image.tag)
        try:
            yield Path(self._output("mount", container))
        finally:
            captured(self._command("rm", container))

    def _variables(self, image: Image) -> list[str]:
        config: dict[str, Any] = json.loads(self._output("inspect", "--type", "image", image.tag))
        variables: list[str] = config["OCIv1"]["config"]["Env"]
        return variables

    def _image_id(self, name: str) -> str | None:
        return output(self._command("inspect", "--type", "image", "--format", "{{.FromImageID}}", name))

    def _output(self, *arguments: str) -> str:
        done = subprocess.run(
            self._command(*arguments), check=False, capture_output=True, text=True, env=os.environ | self._environment()
        )
        if done.returncode != 0:
            raise BuildError(f"`buildah {arguments[0]}` failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def _command(self, *arguments: str) -> list[str]:
        storage = ["--root", str(self.folder / "storage"), "--runroot", RUN_ROOT, "--storage-driver", "overlay"]
        return ["buildah", *storage, *arguments]

    def _environment(self) -> dict[str, str]:
        """TMPDIR also holds what `RUN --mount=type=cache` keeps."""
        return {"TMPDIR": str(self.temporary)}

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _install_missing() -> None:
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise BuildError(f"Neither docker nor podman answers here. Start one of them, or install {', '.join(missing)}.")
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    checked([*apt, "update"])
    checked([*apt, "install", "-y", "--no-install-recommends", *missing], {"DEBIAN_FRONTEND": "noninteractive"})
