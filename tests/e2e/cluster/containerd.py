"""containerd with a socket, a store and settings of its own; nothing of the machine's containerd is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import grpc

from cluster.control_plane.access import wait_until
from e2e.cluster.commands import CommandError, run
from e2e.cluster.machine import CNI_PLUGINS, cni_plugin
from e2e.cluster.site import NODE_PODS, Site

NAMESPACE = "k8s.io"
PAUSE = "localhost/cloister/pause:1"
POLICY_PLUGIN = "cloister-policy"
CONFIG = """\
version = 2
root = "{folder}/containerd"
state = "{folder}/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd-opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE no process may lower its score, and runc would fail.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni/bin"
    conf_dir = "{folder}/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        SystemdCgroup = false
"""


def write_config(site: Site) -> Path:
    """containerd's own configuration and that of the pods' network."""
    file = site.folder / "containerd.toml"
    values = {"folder": site.folder, "socket": site.containerd_socket, "pause": PAUSE, "runc": shutil.which("runc")}
    file.write_text(CONFIG.format(**values))
    _write_cni(site)
    return file


def ctr(site: Site, *arguments: str | Path, timeout_s: float = 60.0) -> str:
    """What ctr prints, asked of our containerd. CommandError when it fails."""
    words = ("ctr", "--address", site.containerd_socket, "--namespace", NAMESPACE)
    return run(*words, *arguments, timeout_s=timeout_s)


def answers(site: Site) -> bool:
    """Whether our containerd answers, and serves what kubelet asks it for."""
    try:
        ctr(site, "version")
        with grpc.insecure_channel(f"unix://{site.containerd_socket}") as channel:
            channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"", timeout=5.0)
    except (CommandError, grpc.RpcError):
        return False
    return True


def forget_containers(site: Site) -> None:
    """Delete all containers, whose processes have ended; images stay."""
    for kind, flags in (("tasks", ["--force"]), ("containers", [])):
        wait_until(partial(_all_deleted, site, kind, flags), f"containerd to forget its {kind}")


def shims(site: Site) -> list[int]:
    """Processes that hold our containers, known by the socket that they were given."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        if b"containerd-shim" in words[0] and os.fsencode(site.containerd_socket) in words:
            found.append(int(process.name))
    return found


def kill_shims(site: Site) -> None:
    """End what holds our containers, and wait until it is gone."""

    def none_is_left() -> bool:
        found = shims(site)
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not found

    wait_until(none_is_left, "containerd's shims to end", timeout_s=20.0)


def _all_deleted(site: Site, kind: str, flags: list[str]) -> bool:
    """containerd itself deletes what it sees end, at the same time: what cannot be deleted may be gone."""
    names = ctr(site, kind, "ls", "-q").split()
    for name in names:
        with contextlib.suppress(CommandError):
            ctr(site, kind, "rm", *flags, name)
    return not names


def _write_cni(site: Site) -> None:
    """Every pod is routed over a link of its own, so that all its traffic passes the rules of the policies."""
    folder = site.folder / "cni"
    for part in ("bin", "net.d"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in CNI_PLUGINS:
        link = folder / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(cni_plugin(name))
    plugin = folder / "bin" / POLICY_PLUGIN
    plugin.write_text(f"#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).with_name('cni_plugin.py')}\n")
    plugin.chmod(0o755)
    addresses = {
        "type": "host-local",
        "dataDir": str(folder / "data"),
        "ranges": [[{"subnet": NODE_PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": POLICY_PLUGIN, "socket": str(site.policy_socket)},
    ]
    configuration = {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}
    (folder / "net.d" / "10-pods.conflist").write_text(json.dumps(configuration, indent=2))
