"""What is put into a cluster: our CRD, other projects' CRDs and roles."""

from __future__ import annotations

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
