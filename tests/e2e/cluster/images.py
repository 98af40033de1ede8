"""Images without a registry: a folder becomes an image of one layer, which containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.control_plane.binaries import program
from e2e.cluster.commands import run
from e2e.cluster.containerd import PAUSE, ctr
from e2e.cluster.machine import BUSYBOX
from e2e.cluster.site import Site

IMPORT_LIMIT_S = 900.0
"""The trainer's image is several GB."""
TOOLS = "localhost/cloister/tools:1"
"""busybox: a shell, nc, nslookup, httpd."""
PAUSE_SOURCE = """\
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { _exit(0); }
static void reap(int number) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
  signal(SIGTERM, end);
  signal(SIGINT, end);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


def pack(folder: Path, name: str, archive: Path, config: dict[str, Any]) -> None:
    """Write a docker-archive of an image with the folder's content, owned by root; `config` as in Docker's format."""
    layer = _tar_of(folder)
    image = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created_by": "cloister"}],
        }
    ).encode()
    config_name = f"{hashlib.sha256(image).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        files = {"layer.tar": layer, config_name: image, "manifest.json": json.dumps(manifest).encode()}
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def import_image(site: Site, archive: Path) -> None:
    """Import a docker-archive under the names that it carries; nothing happens when this very file was imported."""
    status = archive.stat()
    found = f"{status.st_size} {status.st_mtime_ns}"
    noted = _imported(site)
    if noted.get(str(archive)) == found:
        return
    with _replaced_kept(site, archive):
        ctr(site, "images", "import", archive, timeout_s=IMPORT_LIMIT_S)
    _forget_replaced(site)
    _note(site, str(archive), found)


def name_image(site: Site, image: str, further: str) -> None:
    """Give an image that is there a further name."""
    ctr(site, "images", "tag", "--force", image, further)


def forget_name(site: Site, image: str) -> None:
    """Take that name away again: an image without any is deleted."""
    ctr(site, "images", "remove", "--sync", image)


def import_own(site: Site) -> None:
    """The images that the cluster itself needs, packed from programs of this machine."""
    kuberay, coredns = program("kuberay-operator"), program("coredns")
    _import_packed(site, PAUSE, "", _fill_pause, {"Entrypoint": ["/pause"]})
    _import_packed(site, TOOLS, _digest(BUSYBOX), fill_with_tools, {"Env": ["PATH=/bin"]})
    for name, path in ((kuberay_image(), kuberay), (coredns_image(), coredns)):
        _import_packed(site, name, str(path), lambda folder, path=path: fill_with_program(folder, path),
                       {"Entrypoint": [f"/{path.name}"]})  # fmt: skip


def kuberay_image() -> str:
    """The KubeRay operator's image; its tag is that of the program in it."""
    return _image_of("kuberay-operator")


def coredns_image() -> str:
    """CoreDNS's image; its tag is that of the program in it."""
    return _image_of("coredns")


def fill_with_program(folder: Path, path: Path) -> None:
    """Put a program at the folder's top, with what it is linked with."""
    shutil.copy(path, folder / path.name)
    copy_libraries(folder, path)


def copy_libraries(folder: Path, path: Path) -> None:
    """Put the libraries that a program is linked with at their own places."""
    for library in _libraries(path):
        target = folder / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library.resolve(), target)


@contextmanager
def _replaced_kept(site: Site, archive: Path) -> Iterator[None]:
    """Inside, the images whose names the archive carries have further ones.

    An import takes the names first and unpacks then. What it shares with an image that has lost its name is there when
    it looks, and deleted by containerd's garbage collector before it builds upon it.
    """
    with tarfile.open(archive) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        carried = {name for image in json.load(manifest) for name in image["RepoTags"]}
    known = {line.split()[0] for line in ctr(site, "images", "list").splitlines()[1:] if line}
    kept = [f"{name}-replaced" for name in sorted(carried & known)]
    for name in kept:
        name_image(site, name.removesuffix("-replaced"), name)
    try:
        yield
    finally:
        for name in kept:
            forget_name(site, name)


def _forget_replaced(site: Site) -> None:
    """Delete what only its digest names: kubelet's own name of an image whose other names are another's by now."""
    rows = [line.split()[:3] for line in ctr(site, "images", "list").splitlines()[1:] if line]
    named = {digest for name, _, digest in rows if not name.startswith("sha256:")}
    for name, _, digest in rows:
        if digest not in named:
            ctr(site, "images", "remove", "--sync", name)


def _image_of(name: str) -> str:
    return f"localhost/cloister/{name}:{program(name).parent.name.rpartition('-')[2]}"


def _import_packed(site: Site, name: str, identity: str, fill: Any, config: dict[str, Any]) -> None:
    found = f"{identity} {_digest(Path(__file__))}"  # how an image is packed is part of what it is
    if _imported(site).get(name) == found:
        return
    with tempfile.TemporaryDirectory(prefix="cloister-image-") as temporary:
        root, archive = Path(temporary) / "root", Path(temporary) / "image.tar"
        root.mkdir(mode=0o755)
        fill(root)
        pack(root, name, archive, config)
        ctr(site, "images", "import", archive)
    _note(site, name, found)


def _fill_pause(folder: Path) -> None:
    source = folder.parent / "pause.c"
    source.write_text(PAUSE_SOURCE)
    run("gcc", "-static", "-Os", "-o", folder / "pause", source)


def fill_with_tools(folder: Path) -> None:
    """Put busybox under all its names into the folder, and what it needs."""
    (folder / "bin").mkdir()
    shutil.copy(BUSYBOX, folder / "bin" / "busybox")
    copy_libraries(folder, BUSYBOX)
    for applet in run(BUSYBOX, "--list").split():
        if applet != "busybox":
            (folder / "bin" / applet).symlink_to("busybox")
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)


def _libraries(path: Path) -> Sequence[Path]:
    """The files that the loader would load, itself included; none for a static program."""
    found = []
    for line in run("sh", "-c", 'ldd "$0" 2>&1 || true', path).splitlines():
        words = [word for word in line.split() if word.startswith("/")]
        found += [Path(words[0])] if words and "(0x" in line else []
    return found


def _tar_of(folder: Path) -> bytes:
    """The folder's content, the same bytes for the same content."""

    def as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = "root"
        return entry

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=as_root)
    return packed.getvalue()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _imported(site: Site) -> dict[str, str]:
    file = site.folder / "containerd" / "imported.json"
    noted: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return noted


def _note(site: Site, name: str, found: str) -> None:
    """Beside the store that holds the images, so that both go together."""
    file = site.folder / "containerd" / "imported.json"
    file.write_text(json.dumps(_imported(site) | {name: found}))
