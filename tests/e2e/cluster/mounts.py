"""A mount namespace for containerd and kubelet: what they mount is seen by nobody else, and goes with the last of them.

In it, folders of the run folder lie over those whose names the programs have built in.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.site import Site

BUILT_IN = ("/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
HOLDER = "mounts"


def holder_command(site: Site) -> list[str]:
    """A program that holds the namespace while it runs; `is_ready` says when the namespace is as it should be."""
    binds = []
    for target in BUILT_IN:
        own = _own_folder(site, target)
        own.mkdir(parents=True, exist_ok=True)
        binds.append(f"mount --bind {shlex.quote(str(own))} {target}")
    _ready_file(site).unlink(missing_ok=True)
    script = " && ".join([*binds, f"touch {shlex.quote(str(_ready_file(site)))}", "exec sleep infinity"])
    return ["/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script]


def is_ready(site: Site) -> bool:
    """Whether the holder has made all mounts."""
    return _ready_file(site).exists()


def inside(holder: int, command: Sequence[str]) -> list[str]:
    """The command that becomes `command` in the namespace that the process `holder` holds."""
    return ["/usr/bin/nsenter", f"--mount=/proc/{holder}/ns/mnt", "--", *command]


def make_targets(site: Site) -> None:
    """Folders must be there to lie under others; those that were not are noted, to be removed again."""
    made = [target for target in BUILT_IN if not Path(target).exists()]
    for target in made:
        Path(target).mkdir(parents=True)
    with _made_file(site).open("a") as file:
        file.writelines(f"{target}\n" for target in made)


def remove_targets(site: Site) -> None:
    """Remove the folders that `make_targets` made, where nobody has put anything into them since."""
    if not _made_file(site).exists():
        return
    for target in map(Path, _made_file(site).read_text().split()):
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
    _made_file(site).unlink()


def own_netns(site: Site) -> Path:
    """The names of the pods' network namespaces."""
    return _own_folder(site, "/run/netns")


def mounts_below(folder: Path) -> list[str]:
    """Mounts below a folder that this process sees."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if Path(line.split()[1]).is_relative_to(folder)]


def _own_folder(site: Site, target: str) -> Path:
    return site.folder / "over" / target.strip("/").replace("/", "-")


def _ready_file(site: Site) -> Path:
    return site.folder / "run" / "mounts-ready"


def _made_file(site: Site) -> Path:
    return site.folder / "made-folders"
