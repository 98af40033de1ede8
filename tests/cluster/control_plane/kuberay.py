"""The real KubeRay operator on a control plane, as its own ServiceAccount with the roles that it ships."""

from __future__ import annotations

from cluster.control_plane.access import Cluster
from cluster.control_plane.binaries import manifests, program
from cluster.control_plane.install import apply_server_side, apply_with_namespace, wait_until_served
from cluster.control_plane.plane import CLIENT_RATE, HOST, ControlPlane
from support.child_process import Program
from support.seaweedfs import free_ports

NAME = "kuberay-operator"
NAMESPACE = "kuberay-system"
CRDS = tuple(f"ray{kind}.ray.io" for kind in ("clusters", "cronjobs", "jobs", "services"))


def install_kuberay(cluster: Cluster) -> None:
    """KubeRay's CRDs, ServiceAccount and roles; no operator yet."""
    shipped = manifests("kuberay")
    apply_server_side(cluster, shipped / "config/crd/bases")
    apply_with_namespace(cluster, shipped / "config/rbac", NAMESPACE)
    wait_until_served(cluster, *CRDS)


def start_kuberay(plane: ControlPlane, dashboard_port: int) -> Program:
    """Start the operator; what it asks Ray dashboards goes to a proxy on `dashboard_port`, whether or not one listens.

    Pods have no network here, so that nothing else could answer for a head's dashboard.
    """
    metrics, probe = free_ports(2)
    kubeconfig = plane.service_account_kubeconfig(NAMESPACE, NAME, plane.folder)
    rate = [flag.replace("--kube-api-", "--") for flag in CLIENT_RATE]
    command = [
        str(program(NAME)), f"--kubeconfig={kubeconfig}", "--enable-leader-election=false",
        f"--metrics-addr={HOST}:{metrics}", f"--health-probe-bind-address={HOST}:{probe}", *rate,
    ]  # fmt: skip
    proxy = {"HTTP_PROXY": f"http://{HOST}:{dashboard_port}", "NO_PROXY": HOST}
    started = plane.run(NAME, command, plane.environment() | proxy)
    plane.wait_for_port(started, f"http://{HOST}:{probe}/readyz")
    return started
