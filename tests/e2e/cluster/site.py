"""Names and addresses on this machine that belong to the node, and where its files lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "10.200.0.1"
"""The node's own address, on a bridge without ports: no other machine can reach it."""
API_PORT = 6443
BRIDGE = "cloister0"
CGROUP = "cloister-node"
CLUSTER_DNS = "10.96.0.10"
NODE = "node1"
NODE_PODS = "10.244.0.0/24"
PODS = "10.244.0.0/16"

LONGEST_SOCKET = 100
"""Linux takes 108 bytes for the path of a socket; containerd adds `.ttrpc` to its own."""


@dataclass(frozen=True)
class Site:
    """The run folder, by the name of what is in it."""

    folder: Path

    @property
    def containerd_socket(self) -> Path:
        """What kubelet and ctr talk to; also how our shims are told from those of another containerd."""
        return self.folder / "run" / "containerd.sock"

    @property
    def policy_socket(self) -> Path:
        """Where the CNI plugin asks for the rules of a new pod."""
        return self.folder / "run" / "policies.sock"

    @property
    def volumes(self) -> Path:
        """One folder for each volume."""
        return self.folder / "volumes"


def default_folder() -> Path:
    """The run folder of `make cluster-up` and `make e2e`, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cloister" / "node"
