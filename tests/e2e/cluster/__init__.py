"""A real single-node Kubernetes cluster on this machine, as root: `make cluster-up`, and the tests of `make e2e`.

The control plane of `cluster.control_plane`, and kubelet, containerd, kube-proxy, CNI, CoreDNS, KubeRay and Kueue.
NetworkPolicies are enforced and counted. Everything the harness makes has a name of its own or lies in
the run folder, and is gone when the cluster is stopped.
"""
