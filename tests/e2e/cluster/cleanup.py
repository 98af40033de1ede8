"""Everything a node leaves on the machine goes, by the name or process of what the harness made; also after a crash."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from e2e.cluster import cgroups, containerd, mounts, network, sysctls
from e2e.cluster.site import BRIDGE, Site


def clean_up(site: Site) -> None:
    """Remove what `leftovers` names. The programs of the control plane, kubelet and containerd have ended already."""
    cgroups.kill_pods()
    containerd.kill_shims(site)
    for name in mounts.own_netns(site).glob("*"):
        name.unlink()  # the namespace itself went with the last mount of it
    network.remove_links()
    network.remove_rules()
    cgroups.remove_cgroup()
    mounts.remove_targets(site)
    for kubeconfig in site.folder.glob("*.kubeconfig"):
        kubeconfig.unlink()  # without the bridge, whoever still uses one would dial beyond this machine
    sysctls.restore(site.folder / "sysctls.json")
    for made_anew in ("run", "cni", "over"):
        shutil.rmtree(site.folder / made_anew, ignore_errors=True)


def leftovers(site: Site) -> list[str]:
    """What is still there of a node, in words."""
    found: dict[str, Callable[[], list[object]]] = {
        "process": lambda: list(containerd.shims(site)),
        "mount": lambda: list(mounts.mounts_below(site.folder)),
        "link": lambda: [*({BRIDGE} & set(network.link_names())), *network.pod_links()],
        "cgroup": lambda: list(cgroups.cgroups()),
        "chain": lambda: list(network.chains()),
    }
    return [f"{kind} {name}" for kind, names in found.items() for name in names()]
