"""The real Kueue manager on a control plane, for RayJobs and plain Jobs, with its webhooks on loopback."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from cloister_api.yaml_tree import read_documents
from cluster.control_plane.access import Cluster
from cluster.control_plane.api import Object
from cluster.control_plane.binaries import manifests, program
from cluster.control_plane.certificates import Authority, Certified, write_secret
from cluster.control_plane.install import apply_server_side, apply_with_namespace, wait_until_served
from cluster.control_plane.plane import HOST, ControlPlane
from support.child_process import Program
from support.seaweedfs import free_ports

NAMESPACE = "kueue-system"
PREFIX = "kueue-"
ACCOUNT = f"{PREFIX}controller-manager"
SERVICE = f"{PREFIX}webhook-service"
SECRET = f"{PREFIX}webhook-server-cert"
CONFIG_MAP = f"{PREFIX}manager-config"
CONFIG_KEY = "controller_manager_config.yaml"
"""Where an installed Kueue has its configuration: the ConfigMap, and the key in it."""
AUTHORITY = "kueue-ca"
"""The name that Kueue's certificate rotation expects; with another it makes certificates of its own."""
CRDS = tuple(
    f"{plural}.kueue.x-k8s.io"
    for plural in ("clusterqueues", "localqueues", "resourceflavors", "workloads", "workloadpriorityclasses")
)
WEBHOOKS = re.compile(r"-(rayjob|job|clusterqueue|resourceflavor|workload|cohort)$")
"""The webhooks of the frameworks in use; the others would refuse every pod and deployment while Kueue is down."""
WEBHOOK_KINDS = {
    "MutatingWebhookConfiguration": f"{PREFIX}mutating-webhook-configuration",
    "ValidatingWebhookConfiguration": f"{PREFIX}validating-webhook-configuration",
}


def install_kueue(cluster: Cluster) -> None:
    """Kueue's CRDs, ServiceAccount and roles; no manager and no webhooks yet."""
    shipped = manifests("kueue") / "config/components"
    apply_server_side(cluster, shipped / "crd/bases")
    apply_with_namespace(cluster, shipped / "rbac", NAMESPACE, PREFIX)
    wait_until_served(cluster, *CRDS)


def start_kueue(plane: ControlPlane) -> Program:
    """Start the manager and register its webhooks; both are there when this returns."""
    port, probe, metrics = free_ports(3)
    authority = Authority(AUTHORITY, traditional=True)
    server = authority.server([f"{SERVICE}.{NAMESPACE}.svc", HOST])
    folder = _write_certificates(plane, authority.certified, server)
    for configuration in _webhook_configurations(port, authority.certified.certificate):
        plural = f"{configuration['kind'].lower()}s"
        path = f"/apis/admissionregistration.k8s.io/v1/{plural}/{configuration['metadata']['name']}"
        plane.api.apply(path, configuration, "cloister-tests")
    config = plane.folder / "kueue.json"
    config.write_text(json.dumps(_configuration(port, probe, metrics, folder)))
    shown = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP},
        "data": {CONFIG_KEY: config.read_text()},
    }
    plane.api.apply(f"/api/v1/namespaces/{NAMESPACE}/configmaps/{CONFIG_MAP}", shown, "cloister-tests")
    kubeconfig = plane.service_account_kubeconfig(NAMESPACE, ACCOUNT, plane.folder)
    command = [
        str(program("kueue")), f"--config={config}", f"--kubeconfig={kubeconfig}",
        "--feature-gates=VisibilityOnDemand=false",
    ]  # fmt: skip
    started = plane.run("kueue", command, plane.environment())
    plane.wait_for_port(started, f"http://{HOST}:{probe}/readyz")
    return started


def create_queue(
    cluster: Cluster,
    namespace: str,
    quota: dict[str, int | str],
    *,
    name: str = "research",
    preempts: bool = False,
) -> None:
    """A LocalQueue in the namespace, with a ClusterQueue and flavor of its own and this quota; `preempts` lets a
    workload of higher priority take the place of one of lower priority."""
    own = f"{namespace}-{name}"
    resources = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
    group = {"coveredResources": list(quota), "flavors": [{"name": own, "resources": resources}]}
    spec: Object = {"namespaceSelector": {}, "resourceGroups": [group]}
    if preempts:
        spec["preemption"] = {"withinClusterQueue": "LowerPriority"}
    objects: tuple[tuple[str, Object], ...] = (
        ("resourceflavors", {"metadata": {"name": own}}),
        ("clusterqueues", {"metadata": {"name": own}, "spec": spec}),
        (f"namespaces/{namespace}/localqueues", {"metadata": {"name": name}, "spec": {"clusterQueue": own}}),
    )
    kinds = ("ResourceFlavor", "ClusterQueue", "LocalQueue")
    for (path, body), kind in zip(objects, kinds, strict=True):
        typed = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": kind}
        cluster.api.create(f"/apis/kueue.x-k8s.io/v1beta1/{path}", typed | body)


def _write_certificates(plane: ControlPlane, authority: Certified, server: Certified) -> Path:
    """Certificates where Kueue's rotation looks for its own: files and a Secret. It keeps those that it likes."""
    folder = plane.folder / "kueue-certificates"
    folder.mkdir(exist_ok=True)
    files = {
        "ca.crt": authority.certificate, "ca.key": authority.key,
        "tls.crt": server.certificate, "tls.key": server.key,
    }  # fmt: skip
    for name, content in files.items():
        write_secret(folder / name, content)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "data": {name: base64.b64encode(content).decode() for name, content in files.items()},
    }
    plane.api.apply(f"/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}", secret, "cloister-tests")
    return folder


def _webhook_configurations(port: int, authority: bytes) -> list[Object]:
    """Kueue's own webhooks, of the frameworks in use, called by URL: there is no network of Services here."""
    text = (manifests("kueue") / "config/components/webhook/manifests.yaml").read_text()
    configurations: list[Object] = []
    for document in read_documents(text):
        configuration: dict[str, Any] = document.value
        configuration["metadata"] = {"name": WEBHOOK_KINDS[configuration["kind"]]}
        configuration["webhooks"] = [
            hook | {"clientConfig": _client_config(hook["clientConfig"]["service"]["path"], port, authority)}
            for hook in configuration["webhooks"]
            if WEBHOOKS.search(hook["clientConfig"]["service"]["path"])
        ]
        configurations.append(configuration)
    return configurations


def _client_config(path: str, port: int, authority: bytes) -> Object:
    return {"url": f"https://{HOST}:{port}{path}", "caBundle": base64.b64encode(authority).decode()}


def _configuration(port: int, probe: int, metrics: int, certificates: Path) -> Object:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta1",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"{HOST}:{probe}"},
        "metrics": {"bindAddress": f"{HOST}:{metrics}"},
        "webhook": {"host": HOST, "port": port, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"qps": 200, "burst": 400},
        "internalCertManagement": {"enable": True, "webhookServiceName": SERVICE, "webhookSecretName": SECRET},
        "integrations": {"frameworks": ["ray.io/rayjob", "batch/job"]},
    }
