"""The chart as `helm template` renders it, and its golden files.

`python -m support.chart` (with `tests` on PYTHONPATH) writes every rendered.yaml; `--check` names stale ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from cloister_api.yaml_tree import read_documents
from cloister_operator.settings import Settings
from cloister_operator.settings_file import parse_settings
from cluster.control_plane.binaries import program

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "cloister"
FOLDER = ROOT / "tests" / "golden" / "chart"
RELEASE, NAMESPACE = "cloister", "cloister-system"
SERVED = ("ray.io/v1/RayJob", "kueue.x-k8s.io/v1beta1/Workload", "monitoring.coreos.com/v1")
REGISTRY = "images.registry=registry.internal"
CRD = "CustomResourceDefinition"

Object = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the message is what it said."""


def helm(*arguments: str, environment: dict[str, str] | None = None, text: str | None = None) -> str:
    """What helm prints. HelmError when it fails. Nothing of the user's own helm is read or written."""
    with tempfile.TemporaryDirectory(prefix="cloister-helm-") as home:
        own = {"HOME": home, "PATH": os.environ["PATH"], **(environment or {})}
        command = [str(program("helm")), *arguments]
        ended = subprocess.run(command, env=own, input=text, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise HelmError(ended.stderr.strip())
    return ended.stdout


def render(
    *arguments: str, served: tuple[str, ...] = SERVED, release: str = RELEASE, namespace: str = NAMESPACE
) -> str:
    """The chart's manifests, for a cluster that serves `served`."""
    known = [f"--api-versions={version}" for version in served]
    return helm("template", release, str(CHART), "--namespace", namespace, *known, *arguments)


def objects(text: str) -> list[Object]:
    """The Kubernetes objects in a stream of manifests, those of a List each by itself."""
    documents: list[Object] = [each.value for each in read_documents(text) if each.value]
    return [item for each in documents for item in (each["items"] if each["kind"] == "List" else [each])]


def named(found: list[Object], kind: str, name: str) -> Object:
    """The one object of a kind and a name."""
    (one,) = [each for each in found if each["kind"] == kind and each["metadata"]["name"] == name]
    return one


def settings_of(found: list[Object]) -> Settings:
    """The administrator's settings, as the operator reads them."""
    text = named(found, "ConfigMap", "cloister-settings")["data"]["settings.yaml"]
    return parse_settings(text, "settings.yaml")


def cases() -> list[Path]:
    """The folders with values each."""
    return sorted(path.parent for path in FOLDER.glob("*/values.yaml"))


@cache
def rendered(case: Path) -> str:
    """The manifests for a case's values, but the CRD, which is long and the same everywhere."""
    parts = render("--values", str(case / "values.yaml")).split("\n---\n")
    return "\n---\n".join(part for part in parts if f"\nkind: {CRD}\n" not in part)


def main() -> int:
    """Write the files, or with --check name those that are stale."""
    stale = [case for case in cases() if not _is_fresh(case)]
    for case in stale:
        if "--check" not in sys.argv:
            (case / "rendered.yaml").write_text(rendered(case))
        print(f"{case.name}/rendered.yaml {'is stale; run make golden' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


def _is_fresh(case: Path) -> bool:
    path = case / "rendered.yaml"
    return path.exists() and path.read_text() == rendered(case)


if __name__ == "__main__":
    sys.exit(main())
