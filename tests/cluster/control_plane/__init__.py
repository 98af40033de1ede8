"""A real Kubernetes control plane on loopback, for tests and for a person: `make control-plane`.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler, the KubeRay operator, Kueue and kwok run as child
processes of whoever started them, unprivileged. There is no kubelet: pods are scheduled and stay as they are.
"""
