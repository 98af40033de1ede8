"""The node's agents: kubelet, which runs the pods, and kube-proxy, which makes Services reachable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.control_plane.binaries import program
from e2e.cluster.site import ADDRESS, CGROUP, CLUSTER_DNS, NODE, NODE_PODS, Site

KUBELET_HEALTH = "http://127.0.0.1:10248/healthz"
PROXY_HEALTH = "http://127.0.0.1:10256/healthz"


def kubelet_command(site: Site, kubeconfig: Path, certificate: Path, key: Path) -> list[str]:
    """kubelet with everything below the run folder."""
    config = site.folder / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(site, certificate, key), indent=2))
    return [
        str(program("kubelet")), f"--config={config}", f"--kubeconfig={kubeconfig}",
        f"--root-dir={site.folder / 'kubelet'}", f"--cert-dir={site.folder / 'kubelet' / 'pki'}",
        f"--hostname-override={NODE}", f"--node-ip={ADDRESS}",
    ]  # fmt: skip


def proxy_command(kubeconfig: Path) -> list[str]:
    """kube-proxy with iptables; the machine's own settings of conntrack stay as they are."""
    return [
        str(program("kube-proxy")), f"--kubeconfig={kubeconfig}", f"--hostname-override={NODE}",
        "--proxy-mode=iptables", "--detect-local-mode=ClusterCIDR", f"--cluster-cidr={NODE_PODS}",
        "--oom-score-adj=0", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0", f"--nodeport-addresses={ADDRESS}/32",
        "--iptables-localhost-nodeports=false", "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=127.0.0.1:10249", f"--bind-address={ADDRESS}",
    ]  # fmt: skip


def _kubelet_config(site: Site, certificate: Path, key: Path) -> dict[str, Any]:
    resolver = site.folder / "resolv.conf"
    resolver.write_text("")  # else the machine's own resolver would leak into the pods
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "healthzBindAddress": "127.0.0.1",
        "readOnlyPort": 0,
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(site.folder / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [CLUSTER_DNS],
        "resolvConf": str(resolver),
        "containerRuntimeEndpoint": f"unix://{site.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "oomScoreAdj": 0,
        "failSwapOn": False,
        "serializeImagePulls": False,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        # No registry could give back an image that was collected.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        "podLogsDir": str(site.folder / "podlogs"),
        "volumePluginDir": str(site.folder / "kubelet" / "volplugins"),
    }
