"""The programs of a cluster: from KUBEBUILDER_ASSETS, or built once from Go modules into the user's cache.

`tests/cluster/go/` holds one Go module for each pinned project. What is built from it lies in
`~/.cache/cloister/bin/<module>-<digest of its go.mod and go.sum>/`, with the manifests that the project ships.

    python -m cluster.control_plane.binaries          builds what the control plane lacks, prints where each program is
    python -m cluster.control_plane.binaries --node   also what a node needs: kubelet, kube-proxy, CoreDNS
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
from dataclasses import dataclass, field
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
    node_programs: dict[str, str] = field(default_factory=dict)
    """Further programs, which only a node needs: built when asked for."""
    wanted_programs: dict[str, str] = field(default_factory=dict)
    """Programs that `build` makes for whoever wants one."""
    version_variables: tuple[str, ...] = ()
    """Go variables and the value that each gets; {version}, {major} and {minor} stand for those of the module."""
    taken_from_path: str | None = None
    """The start of what `<program> version --short` must say for one on the PATH to be taken. None: none is."""


MODULES = (
    Module("etcd", "go.etcd.io/etcd/server/v3", {"etcd": ""}),
    Module(
        "kubernetes",
        "k8s.io/kubernetes",
        {name: f"cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")},
        node_programs={name: f"cmd/{name}" for name in ("kubelet", "kube-proxy")},
        version_variables=tuple(
            f"k8s.io/component-base/version.{variable}"
            for variable in ("gitVersion={version}", "gitMajor={major}", "gitMinor={minor}")
        ),
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
    Module(
        "helm",
        "helm.sh/helm/v3",
        {"helm": "cmd/helm"},
        version_variables=(
            "helm.sh/helm/v3/internal/version.version={version}",
            "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34",  # what `helm template` renders for, without a cluster
            "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=34",
        ),
        taken_from_path="v3.19.",
    ),
    Module("kind", "sigs.k8s.io/kind", {}, wanted_programs={"kind": ""}),
    Module("coredns", "github.com/coredns/coredns", {}, node_programs={"coredns": ""}),
    # Of these three only the CRDs are taken, for examples/.
    Module("argo-cd", "github.com/argoproj/argo-cd/v3", {}, manifests=("manifests/crds",)),
    Module("flux", "github.com/fluxcd/kustomize-controller", {}, manifests=("config/crd/bases",)),
    Module("kserve", "github.com/kserve/kserve", {}, manifests=("config/crd/full/llmisvc",)),
)
PROGRAMS = tuple(program for module in MODULES for program in module.programs)
NODE_PROGRAMS = tuple(program for module in MODULES for program in module.node_programs)


class MissingProgramError(Exception):
    """A program is neither in KUBEBUILDER_ASSETS nor built."""


def program(name: str) -> Path:
    """Where a program is: in KUBEBUILDER_ASSETS when that folder has it, on the PATH when its module allows that, else
    what was built from its Go module.

    Raises:
        MissingProgramError: it is in none of these places.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    module = _module_of(name)
    places = [Path(assets) / name] if assets else []
    if module.taken_from_path and (found := _on_path(name, module.taken_from_path)):
        places.append(found)
    places.append(built_folder(module) / name)
    for place in places:
        if os.access(place, os.X_OK) and place.is_file():
            return place.resolve()
    looked = " and ".join(map(str, places))
    target = "node-binaries" if name in NODE_PROGRAMS else "control-plane-binaries"
    raise MissingProgramError(f"{name} is not there (looked for {looked}): run `make {target}` once.")


def manifests(name: str) -> Path:
    """The folder of the manifests that a project ships. MissingProgramError when the project was not built."""
    module = next(module for module in MODULES if module.name == name)
    folder = built_folder(module) / "manifests"
    if not folder.is_dir():
        raise MissingProgramError(f"{folder} is not there: run `make control-plane-binaries` once.")
    return folder


def build_missing(*, node: bool = False) -> None:
    """Build every program that is not there yet, one after another; another process that builds is waited for."""
    for module in MODULES:
        programs = module.programs | (module.node_programs if node else {})
        if programs or module.manifests:
            _build_of(module, programs)


def build(name: str) -> Path:
    """Where a program is, built first when it is not there."""
    module = _module_of(name)
    _build_of(module, {name: _all_programs(module)[name]})
    return program(name)


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


def _build_of(module: Module, programs: dict[str, str]) -> None:
    folder = built_folder(module)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / ".lock"):
        for name, package in programs.items():
            if not _is_there(name):
                _build(module, name, package, folder)
        if module.manifests and not (folder / "manifests").is_dir():
            _copy_manifests(module, folder)


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
    _go(module, "mod", "download", module.path)  # a module of which nothing is built is not there yet
    source = Path(_go(module, "list", "-m", "-f", "{{.Dir}}", module.path).strip())
    unfinished = folder / f".manifests.{os.getpid()}"
    for part in module.manifests:
        copied = shutil.copytree(source / part, unfinished / part, copy_function=shutil.copyfile)
        for made in (copied, *Path(copied).rglob("*")):  # Go's module cache is read-only
            Path(made).chmod(0o755 if Path(made).is_dir() else 0o644)
    unfinished.rename(folder / "manifests")


def _version_flags(module: Module, version: str) -> list[str]:
    major, minor, _ = version.removeprefix("v").split(".", 2)
    return [f"-X {each.format(version=version, major=major, minor=minor)}" for each in module.version_variables]


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
    return next(module for module in MODULES if name in _all_programs(module))


def _all_programs(module: Module) -> dict[str, str]:
    return module.programs | module.node_programs | module.wanted_programs


def _on_path(name: str, version: str) -> Path | None:
    """The program on the PATH, when it says that it is of this version."""
    if (found := shutil.which(name)) is None:
        return None
    said = subprocess.run([found, "version", "--short"], capture_output=True, text=True, check=False).stdout
    return Path(found) if said.startswith(version) else None


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
    for_node = "--node" in sys.argv[1:]
    build_missing(node=for_node)
    for each in PROGRAMS + (NODE_PROGRAMS if for_node else ()):
        print(f"{each:24} {program(each)}")
