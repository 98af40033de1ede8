"""What is put into a cluster: our CRD, other projects' CRDs and roles."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path

from cloister_api.crd import CRD_NAME
from cluster.control_plane.access import Cluster, wait_until

CRD_FILE = Path(__file__).resolve().parents[3] / "crds" / "cloister.dev_finetunejobs.yaml"


def apply_crd(cluster: Cluster) -> None:
    """Apply the FineTuneJob's CRD and wait until it is served."""
    apply_server_side(cluster, CRD_FILE)
    wait_until_served(cluster, CRD_NAME)


def apply_server_side(cluster: Cluster, path: Path) -> None:
    """`kubectl apply --server-side` of a file or folder: large CRDs do not fit into client-side apply's annotation."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))


def wait_until_served(cluster: Cluster, *names: str) -> None:
    """Wait until objects of these CRDs can be made, found by kubectl, and explained."""
    for name in names:
        wait_until(partial(_is_served, cluster, name), f"the CRD {name}")
    cluster.forget_discovery()


def _is_served(cluster: Cluster, name: str) -> bool:
    crd = cluster.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    conditions = crd.get("status", {}).get("conditions") or []  # null in a new CRD
    if not any(each["type"] == "Established" and each["status"] == "True" for each in conditions):
        return False
    group = f"apis/{crd['spec']['group']}/{crd['spec']['versions'][0]['name']}"
    resources = {resource["name"] for resource in cluster.api.get(f"/{group}")["resources"]}
    return crd["spec"]["names"]["plural"] in resources and group in cluster.api.get("/openapi/v3")["paths"]


def apply_with_namespace(cluster: Cluster, folder: Path, namespace: str, prefix: str = "") -> None:
    """Apply a project's kustomization in a namespace made for it, with a prefix to every name."""
    cluster.api.apply(
        f"/api/v1/namespaces/{namespace}",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        "cloister-tests",
    )
    with tempfile.TemporaryDirectory(prefix="cloister-kustomize-") as name:
        relative = os.path.relpath(folder, name)  # kustomize takes no absolute path
        overlay = {"namespace": namespace, "namePrefix": prefix, "resources": [relative]}
        (Path(name) / "kustomization.yaml").write_text(json.dumps(overlay))
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "--kustomize", name)
