"""What runs in pods of the cluster itself: CoreDNS and the KubeRay operator."""

from __future__ import annotations

import datetime
from typing import Any

from cluster.control_plane import kuberay
from cluster.control_plane.access import Cluster, wait_until
from cluster.control_plane.api import Object
from cluster.control_plane.binaries import MODULES, pinned_version
from e2e.cluster.images import coredns_image, kuberay_image
from e2e.cluster.site import CLUSTER_DNS

MANAGER = "cloister-tests"
COREFILE = """\
.:53 {
  errors
  health :8080
  ready :8181
  kubernetes cluster.local in-addr.arpa {
    pods insecure
    ttl 0
  }
  cache 1
  loadbalance
}
"""
"""There is no `forward`: a name outside of the cluster is refused at once, and no query leaves the machine."""
DNS_LABELS = {"k8s-app": "kube-dns"}
KUBERAY_LABELS = {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/component": "kuberay-operator"}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def install_dns(cluster: Cluster) -> None:
    """CoreDNS as clusters have it: the Service kube-dns, and pods with the label that policies name."""
    core, rbac = "/api/v1/namespaces/kube-system", "/apis/rbac.authorization.k8s.io/v1"
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"}
    subject = {"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}
    ports = [
        {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "targetPort": 53, "protocol": "TCP"},
    ]
    binding = {"roleRef": role, "subjects": [subject]}
    service = {"spec": {"clusterIP": CLUSTER_DNS, "selector": DNS_LABELS, "ports": ports}}
    apply(cluster, f"{core}/serviceaccounts/coredns", "v1", "ServiceAccount", {})
    apply(cluster, f"{rbac}/clusterroles/coredns", "rbac.authorization.k8s.io/v1", "ClusterRole", {"rules": rules})
    apply(cluster, f"{rbac}/clusterrolebindings/coredns", "rbac.authorization.k8s.io/v1", "ClusterRoleBinding", binding)
    apply(cluster, f"{core}/configmaps/coredns", "v1", "ConfigMap", {"data": {"Corefile": COREFILE}})
    apply(cluster, f"{core}/services/kube-dns", "v1", "Service", service)
    _apply_deployment(cluster, "kube-system", "coredns", DNS_LABELS, _dns_pod())


def install_kuberay(cluster: Cluster) -> None:
    """KubeRay as its chart installs it: a Deployment, here in a namespace that enforces Pod Security `restricted`."""
    kuberay.install_kuberay(cluster)
    namespace = kuberay.NAMESPACE
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    apply(cluster, f"/api/v1/namespaces/{namespace}", "v1", "Namespace", level)
    (version,) = (pinned_version(module) for module in MODULES if module.name == "kuberay")
    chart = {"helm.sh/chart": f"kuberay-operator-{version.removeprefix('v')}"}
    _apply_deployment(cluster, namespace, kuberay.NAME, KUBERAY_LABELS, _kuberay_pod(), chart)


def wait_until_running(
    cluster: Cluster, namespace: str, labels: dict[str, str], since: datetime.datetime, timeout_s: float = 60.0
) -> None:
    """Wait until a pod with these labels is Ready in containers that were started since then.

    After a start with kept data, statuses are those of the last time until kubelet has looked at its pods.
    """
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"

    def is_running() -> bool:
        return any(_runs_since(pod["status"], since) for pod in cluster.api.get(path)["items"])

    wait_until(is_running, f"the pod of {selector} in {namespace}", timeout_s)


def apply(cluster: Cluster, path: str, version: str, kind: str, content: dict[str, Any]) -> Object:
    """Apply an object, whose name and namespace stand in the path."""
    metadata = {**content.get("metadata", {}), "name": path.rsplit("/", 1)[1]}
    body = {"apiVersion": version, "kind": kind, **content, "metadata": metadata}
    applied: Object = cluster.api.apply(path, body, MANAGER)
    return applied


def _apply_deployment(
    cluster: Cluster,
    namespace: str,
    name: str,
    labels: dict[str, str],
    pod: dict[str, Any],
    own_labels: dict[str, str] | None = None,
) -> None:
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
    apply(cluster, path, "apps/v1", "Deployment", {"metadata": {"labels": own_labels or {}}, "spec": spec})


def _runs_since(status: Object, since: datetime.datetime) -> bool:
    def is_new(container: Object) -> bool:
        began = container["state"].get("running", {}).get("startedAt")  # whole seconds
        return bool(began and datetime.datetime.fromisoformat(began) >= since.replace(microsecond=0))

    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))
    return ready and all(map(is_new, status.get("containerStatuses", [])))


def _dns_pod() -> dict[str, Any]:
    container = {
        "name": "coredns",
        "image": coredns_image(),
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "20m", "memory": "70Mi"}, "limits": {"memory": "170Mi"}},
        "readinessProbe": _http_probe("/ready", 8181),
        "livenessProbe": _http_probe("/health", 8080) | {"initialDelaySeconds": 60},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    return {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }


def _kuberay_pod() -> dict[str, Any]:
    container = {
        "name": "kuberay-operator",
        "image": kuberay_image(),
        "imagePullPolicy": "Never",
        "env": [{"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
        "ports": [{"name": "http", "containerPort": 8080}],
        "resources": {"requests": {"cpu": "20m", "memory": "100Mi"}, "limits": {"memory": "512Mi"}},
        "readinessProbe": _http_probe("/readyz", 8082),
        "livenessProbe": _http_probe("/healthz", 8082) | {"initialDelaySeconds": 10},
        "securityContext": RESTRICTED,
    }
    return {
        "serviceAccountName": kuberay.NAME,
        "terminationGracePeriodSeconds": 10,
        "containers": [container],
    }


def _http_probe(path: str, port: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": port}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 5}
