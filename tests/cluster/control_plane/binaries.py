"""The programs of the control plane: from KUBEBUILDER_ASSETS, or built once from Go modules into the user's cache.

`tests/cluster/go/` holds one Go module for each pinned project. What is built from it lies in
`~/.cache/cloister/bin/<module>-<digest of its go.mod and go.sum>/`, with the manifests that the project ships.

    python -m cluster.control_plane.binaries        builds what is missing and prints where each program is
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.control_plane.go import go_command, go_environment

MODULES_FOLDER = Path(__file__).resolve().parents[1] / "go"
RECIPE = 1
"""Counted up when the way of building changes, so that no older result is taken for a new one."""


@dataclass(frozen=True)
class Module:
    """One pinned project: its folder under `tests/cluster/go`, its Go module, its programs and manifests."""

    name: str
    path: str
    programs: dict[str, str]
    """Name of each program and the folder of its package in the Go module."""
    manifests: tuple[str, ...] = ()
    """Folders of the Go module that are copied beside the programs."""
    version_variables: str | None = None
    """The Go package whose gitVersion, gitMajor and gitMinor say the version."""


MODULES = (
    Module("etcd", "go.etcd.io/etcd/server/v3", {"etcd": ""}),
    Module(
        "kubernetes",
        "k8s.io/kubernetes",
        {name: f"cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")},
        version_variables="k8s.io/component-base/version",
    ),
    Module(
        "kuberay",
        "github.com/ray-project/kuberay/ray-operator",
        {"kuberay-operator": ""},
        manifests=("config/crd/bases", "config/rbac"),
    ),
    Module(
        "kueue",
        "sigs.k8s.io/kueue",
        {"kueue": "cmd/kueue"},
        manifests=("config/components/crd/bases", "config/components/rbac", "config/components/webhook"),
    ),
    Module("kwok", "sigs.k8s.io/kwok", {"kwok": "cmd/kwok"}),
    Module("cyclonus", "github.com/mattfenwick/cyclonus", {"cyclonus": "cmd/cyclonus"}),
)
PROGRAMS = tuple(program for module in MODULES for program in module.programs)


class MissingProgramError(Exception):
    """A program is neither in KUBEBUILDER_ASSETS nor built."""


def program(name: str) -> Path:
    """Where a program is: in KUBEBUILDER_ASSETS when that folder has it, else what was built from its Go module.

    Raises:
        MissingProgramError: it is in neither place.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    places = [Path(assets) / name] if assets else []
    places.append(built_folder(_module_of(name)) / name)
    for place in places:
        if os.access(place, os.X_OK) and place.is_file():
            return place.resolve()
    looked = " and ".join(map(str, places))
    raise MissingProgramError(f"{name} is not there (looked for {looked}): run `make control-plane-binaries` once.")


def manifests(name: str) -> Path:
    """The folder of the manifests that a project ships. MissingProgramError when the project was not built."""
    module = next(module for module in MODULES if module.name == name)
    folder = built_folder(module) / "manifests"
    if not folder.is_dir():
        raise MissingProgramError(f"{folder} is not there: run `make control-plane-binaries` once.")
    return folder


def build_missing() -> None:
    """Build every program that is not there yet, one after another; another process that builds is waited for."""
    for module in MODULES:
        folder = built_folder(module)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / ".lock"):
            for name, package in module.programs.items():
                if not _is_there(name):
                    _build(module, name, package, folder)
            if module.manifests and not (folder / "manifests").is_dir():
                _copy_manifests(module, folder)


def built_folder(module: Module) -> Path:
    """The folder in the user's cache for what is built from the module's go.mod and go.sum."""
    digest = hashlib.sha256(str(RECIPE).encode())
    for file in ("go.mod", "go.sum"):
        digest.update((MODULES_FOLDER / module.name / file).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cloister" / "bin" / f"{module.name}-{digest.hexdigest()[:16]}"


def pinned_version(module: Module) -> str:
    """The version in the module's go.mod, for example v1.34.4."""
    for line in (MODULES_FOLDER / module.name / "go.mod").read_text().splitlines():
        words = line.removeprefix("require").split()
        if words[:1] == [module.path]:
            return words[1]
    raise ValueError(f"{module.name}/go.mod requires no {module.path}")


def _build(module: Module, name: str, package: str, folder: Path) -> None:
    """Build under another name, then rename: a program under its own name is always whole."""
    version = pinned_version(module)
    print(
        f"Building {name} {version} from its Go module (minutes, the first time only) ...", file=sys.stderr, flush=True
    )
    begun = time.monotonic()
    unfinished = folder / f".{name}.{os.getpid()}"
    target = "/".join(filter(None, (module.path, package)))
    flags = ["-trimpath", "-ldflags", " ".join(["-s", "-w", *_version_flags(module, version)])]
    try:
        _go(module, "build", *flags, "-o", str(unfinished), target)
        unfinished.replace(folder / name)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"Built {name} in {time.monotonic() - begun:.0f} s.", file=sys.stderr, flush=True)


def _copy_manifests(module: Module, folder: Path) -> None:
    source = Path(_go(module, "list", "-m", "-f", "{{.Dir}}", module.path).strip())
    unfinished = folder / f".manifests.{os.getpid()}"
    for part in module.manifests:
        copied = shutil.copytree(source / part, unfinished / part, copy_function=shutil.copyfile)
        for made in (copied, *Path(copied).rglob("*")):  # Go's module cache is read-only
            Path(made).chmod(0o755 if Path(made).is_dir() else 0o644)
    unfinished.rename(folder / "manifests")


def _version_flags(module: Module, version: str) -> list[str]:
    if module.version_variables is None:
        return []
    major, minor, _ = version.removeprefix("v").split(".", 2)
    variables = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    return [f"-X {module.version_variables}.{name}={value}" for name, value in variables.items()]


def _go(module: Module, *arguments: str) -> str:
    command = ["nice", str(go_command()), *arguments]
    ended = subprocess.run(
        command,
        cwd=MODULES_FOLDER / module.name,
        env=go_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"`{' '.join(command[1:])}` in {MODULES_FOLDER / module.name} ended with {ended.returncode}.")
    return ended.stdout


def _module_of(name: str) -> Module:
    return next(module for module in MODULES if name in module.programs)


def _is_there(name: str) -> bool:
    try:
        program(name)
    except MissingProgramError:
        return False
    return True


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    build_missing()
    for each in PROGRAMS:
        print(f"{each:24} {program(each)}")
