"""A cluster of one node that kind makes with docker, with the images, KubeRay and Kueue in it.

Its kubeconfig is a file of its own; the user's is neither read nor written.
"""

from __future__ import annotations

import datetime
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.control_plane import kueue
from cluster.control_plane.access import Cluster
from cluster.control_plane.binaries import build, manifests, program
from cluster.control_plane.certificates import write_secret
from cluster.control_plane.install import apply_with_namespace
from cluster.control_plane.kuberay import NAMESPACE as KUBERAY_NAMESPACE
from e2e.cluster import services
from e2e.cluster.commands import run, succeeds
from e2e.cluster.images import fill_with_program, kuberay_image, pack

NAME = "cloister-e2e"
CONFIG = """\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
"""
CREATE_LIMIT_S = 900.0
"""The node's image, about 1 GB, is pulled the first time."""
LOAD_LIMIT_S = 900.0
READY_LIMIT_S = 300.0
"""Kueue makes its certificates, and the kubelet brings them into its pod within two minutes."""
KUEUE_IMAGE = "localhost/cloister/kueue:e2e"
KUEUE_LABELS = {"control-plane": "controller-manager"}
CERTIFICATES, SETTINGS, WEBHOOKS_PORT, PROBES_PORT = "/certificates", "/settings", 9443, 8081


def docker_answers() -> bool:
    """Whether there is a docker whose daemon this process may use."""
    return shutil.which("docker") is not None and succeeds("docker", "info")


@contextmanager
def kind_cluster(folder: Path, archives: Sequence[Path]) -> Iterator[Cluster]:
    """A new cluster with the images of these archives; deleted at the end. One that was left is deleted before."""
    kind = build("kind")
    file = folder / "kind.kubeconfig"
    delete = (kind, "delete", "cluster", "--name", NAME, "--kubeconfig", file)
    create = (kind, "create", "cluster", "--name", NAME, "--kubeconfig", file, "--config", "-", "--wait", "5m")
    run(*delete)
    try:
        run(*create, text=CONFIG, timeout_s=CREATE_LIMIT_S)
        for archive in archives:
            _load(kind, archive)
        for image, name in ((kuberay_image(), "kuberay-operator"), (KUEUE_IMAGE, "kueue")):
            _load_program(kind, image, program(name))
        view = (program("kubectl"), "--kubeconfig", file, "config", "view", "--raw", "--flatten", "--output=json")
        cluster = Cluster(write_secret(folder / "kubeconfig", run(*view).encode()))
        _install(cluster)
        yield cluster
        cluster.close()
    finally:
        run(*delete)


def _load(kind: Path, archive: Path) -> None:
    run(kind, "load", "image-archive", archive, "--name", NAME, timeout_s=LOAD_LIMIT_S)


def _load_program(kind: Path, image: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="cloister-image-") as temporary:
        root, archive = Path(temporary) / "root", Path(temporary) / "image.tar"
        root.mkdir(mode=0o755)
        fill_with_program(root, path)
        pack(root, image, archive, {"Entrypoint": [f"/{path.name}"]})
        _load(kind, archive)


def _install(cluster: Cluster) -> None:
    began = datetime.datetime.now(datetime.UTC)
    services.install_kuberay(cluster)
    kueue.install_kueue(cluster)
    _start_kueue(cluster)
    for namespace, labels in ((KUBERAY_NAMESPACE, services.KUBERAY_LABELS), (kueue.NAMESPACE, KUEUE_LABELS)):
        services.wait_until_running(cluster, namespace, labels, began, READY_LIMIT_S)


def _start_kueue(cluster: Cluster) -> None:
    """As Kueue's own manifests do: a Deployment that makes its certificates, behind the Service of its webhooks."""
    core = f"/api/v1/namespaces/{kueue.NAMESPACE}"
    settings = {"data": {kueue.CONFIG_KEY: json.dumps(_kueue_settings())}}
    services.apply(cluster, f"{core}/configmaps/{kueue.CONFIG_MAP}", "v1", "ConfigMap", settings)
    services.apply(cluster, f"{core}/secrets/{kueue.SECRET}", "v1", "Secret", {})
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": KUEUE_LABELS},
        "template": {"metadata": {"labels": KUEUE_LABELS}, "spec": _kueue_pod()},
    }
    path = f"/apis/apps/v1/namespaces/{kueue.NAMESPACE}/deployments/{kueue.ACCOUNT}"
    services.apply(cluster, path, "apps/v1", "Deployment", {"spec": spec})
    port = {"port": 443, "targetPort": WEBHOOKS_PORT, "protocol": "TCP"}
    service = {"spec": {"selector": KUEUE_LABELS, "ports": [port]}}  # the one below selects nothing by itself
    services.apply(cluster, f"{core}/services/{kueue.SERVICE}", "v1", "Service", service)
    apply_with_namespace(cluster, manifests("kueue") / "config/components/webhook", kueue.NAMESPACE, kueue.PREFIX)


def _kueue_settings() -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta1",
        "kind": "Configuration",
        "namespace": kueue.NAMESPACE,
        "health": {"healthProbeBindAddress": f":{PROBES_PORT}"},
        "webhook": {"port": WEBHOOKS_PORT, "certDir": CERTIFICATES},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {
            "enable": True, "webhookServiceName": kueue.SERVICE, "webhookSecretName": kueue.SECRET,
        },
        "integrations": {"frameworks": ["ray.io/rayjob", "batch/job"]},
    }  # fmt: skip


def _kueue_pod() -> dict[str, Any]:
    container = {
        "name": "kueue",
        "image": KUEUE_IMAGE,
        "imagePullPolicy": "Never",
        "args": [f"--config={SETTINGS}/{kueue.CONFIG_KEY}", "--feature-gates=VisibilityOnDemand=false"],
        "ports": [{"name": "webhook-server", "containerPort": WEBHOOKS_PORT}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": PROBES_PORT}, "periodSeconds": 1},
        "securityContext": services.RESTRICTED,
        "volumeMounts": [
            {"name": "certificates", "mountPath": CERTIFICATES, "readOnly": True},
            {"name": "settings", "mountPath": SETTINGS, "readOnly": True},
        ],
    }
    return {
        "serviceAccountName": kueue.ACCOUNT,
        "containers": [container],
        "volumes": [
            {"name": "certificates", "secret": {"secretName": kueue.SECRET}},
            {"name": "settings", "configMap": {"name": kueue.CONFIG_MAP}},
        ],
    }
