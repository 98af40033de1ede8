"""A Kubernetes cluster of one real node, started and stopped in one piece."""

from __future__ import annotations

import contextlib
import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Self

from cluster.control_plane.certificates import Authority
from cluster.control_plane.kuberay import NAMESPACE as KUBERAY_NAMESPACE
from cluster.control_plane.kueue import install_kueue, start_kueue
from cluster.control_plane.plane import ControlPlane
from e2e.cluster import cgroups, containerd, images, mounts, network, services, sysctls
from e2e.cluster.cleanup import clean_up
from e2e.cluster.enforcer import PolicyEnforcer
from e2e.cluster.kubelet import KUBELET_HEALTH, PROXY_HEALTH, kubelet_command, proxy_command
from e2e.cluster.machine import MachineLock, check_machine
from e2e.cluster.site import ADDRESS, API_PORT, NODE, PODS, Site, default_folder
from e2e.cluster.volumes import VolumeMaker

OBJECTS = ("etcd", "kubelet", "volumes", "podlogs", "logs")
"""What a fresh cluster starts without; images stay."""
Step = tuple[str, Callable[[], object]]


class Node(ControlPlane):
    """The control plane, a kubelet with containerd, enforced NetworkPolicies, DNS, volumes, KubeRay and Kueue.

    The run folder keeps objects and images for the next start; a `fresh` one begins without objects.
    """

    host = ADDRESS
    secure_port = API_PORT
    keeps_data = True

    def __init__(self, folder: Path | None = None, *, fresh: bool = False) -> None:
        folder = (folder or default_folder()).resolve()
        super().__init__(folder)
        self.site = Site(folder)
        self._fresh = fresh
        self._lock = MachineLock()
        self._agents_began = datetime.datetime.now(datetime.UTC)
        self._volumes: VolumeMaker | None = None
        self._policies: PolicyEnforcer | None = None

    @property
    def policies(self) -> PolicyEnforcer:
        """The enforcer of NetworkPolicies, with its counters."""
        assert self._policies is not None, "the node was not started"
        return self._policies

    def start(self) -> Self:
        """Start everything and wait until jobs can run. MachineError when this machine cannot."""
        check_machine(self.site)
        self.site.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire(self.site)
        try:
            for _, step in self.steps():
                step()
        except BaseException:
            self.stop()
            raise
        return self

    def steps(self) -> list[Step]:
        """What a start does, in order, each with a title."""
        return [
            ("this machine", self._prepare_machine),
            ("Kubernetes", super().start),
            ("containerd and images", self._start_containerd),
            ("NetworkPolicies, volumes", self._start_harness),
            ("kubelet, kube-proxy", self._start_agents),
            ("KubeRay's and Kueue's definitions", self._install),
            ("Kueue", lambda: start_kueue(self)),
            ("CoreDNS, KubeRay", self._wait_for_services),
        ]

    def stop(self) -> None:
        """Stop everything and leave nothing of it on the machine but the run folder. May be called twice."""
        with contextlib.ExitStack() as steps:  # the last comes first, and all of them whatever one raises
            for step in (self._lock.release, self._clean_up, self._kill_all, self._stop_pods, self._stop_harness):
                steps.callback(step)

    def import_image(self, archive: Path) -> None:
        """Import a docker-archive, for pods to use with the names that it carries."""
        images.import_image(self.site, archive)

    def name_image(self, image: str, further: str) -> None:
        """Give an imported image a further name, as if another version of it had been imported."""
        images.name_image(self.site, image, further)

    def forget_name(self, image: str) -> None:
        """Take a further name away, with what only it keeps."""
        images.forget_name(self.site, image)

    def guarded_packets(self) -> int:
        """How many packets pods would have sent out of this machine so far."""
        return network.guarded_packets()

    def api_server_flags(self) -> list[str]:
        """The API server calls the kubelet, and pods may be privileged where Pod Security allows it."""
        certificate, key = self._authority.client("kube-apiserver-kubelet-client", "system:masters").write(
            self.folder, "kubelet-client"
        )
        return [
            "--allow-privileged=true", f"--kubelet-client-certificate={certificate}", f"--kubelet-client-key={key}",
            f"--kubelet-certificate-authority={self.folder / 'ca.crt'}",
        ]  # fmt: skip

    def controller_manager_flags(self) -> list[str]:
        """The node gets its range of pods' addresses."""
        return ["--allocate-node-cidrs=true", f"--cluster-cidr={PODS}"]

    def _prepare_machine(self) -> None:
        clean_up(self.site)
        for name in OBJECTS if self._fresh else ("logs",):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self._fresh = False  # a further start goes on with what this one makes
        self._authority = Authority.kept(self.folder, "ca", "cloister-test-ca")
        (self.folder / "run").mkdir(exist_ok=True)
        sysctls.remember(self.folder / "sysctls.json")
        sysctls.forward_packets()
        cgroups.create_cgroup()
        network.create_bridge()
        network.create_guard()
        mounts.make_targets(self.site)

    def _start_containerd(self) -> None:
        config = containerd.write_config(self.site)
        holder = self.run(mounts.HOLDER, mounts.holder_command(self.site))
        self._wait_for(lambda: mounts.is_ready(self.site), holder)
        command = [str(shutil.which("containerd")), f"--config={config}"]
        started = self.run("containerd", mounts.inside(holder.pid, command))
        self._wait_for(lambda: containerd.answers(self.site), started)
        containerd.forget_containers(self.site)
        images.import_own(self.site)

    def _start_harness(self) -> None:
        self._policies = PolicyEnforcer(self, self.site.policy_socket)
        self._policies.start()
        self._volumes = VolumeMaker(self, self.site.volumes)
        self._volumes.start()

    def _start_agents(self) -> None:
        self._agents_began = datetime.datetime.now(datetime.UTC)
        kubeconfig = self.user_kubeconfig(f"system:node:{NODE}", "system:nodes")
        certificate, key = self.server_certificate("kubelet", [ADDRESS, NODE])
        inside = kubelet_command(self.site, kubeconfig, certificate, key)
        kubelet = self.run("kubelet", mounts.inside(self.program(mounts.HOLDER).pid, inside))
        proxy = self.run("kube-proxy", proxy_command(self.user_kubeconfig("system:kube-proxy")))
        self.wait_for_port(kubelet, KUBELET_HEALTH)
        self.wait_for_port(proxy, PROXY_HEALTH)
        self._wait_for(self._is_ready, kubelet)

    def _install(self) -> None:
        """Pods of the cluster's own services start meanwhile."""
        services.install_dns(self)
        services.install_kuberay(self)
        install_kueue(self)

    def _wait_for_services(self) -> None:
        services.wait_until_running(self, "kube-system", services.DNS_LABELS, self._agents_began)
        services.wait_until_running(self, KUBERAY_NAMESPACE, services.KUBERAY_LABELS, self._agents_began)

    def _is_ready(self) -> bool:
        """After a start with kept data the node's old status says Ready; a new lease says that kubelet is back."""
        lease = self.api.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE}")
        if datetime.datetime.fromisoformat(lease["spec"]["renewTime"]) < self._agents_began:
            return False
        node = self.api.get(f"/api/v1/nodes/{NODE}")
        conditions = node["status"].get("conditions", [])
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        return ready and not node["spec"].get("taints")

    def _clean_up(self) -> None:
        clean_up(self.site)

    def _stop_harness(self) -> None:
        for each in (self._volumes, self._policies):
            if each is not None:
                each.stop()
        self._stop_programs("kueue", "kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager")

    def _stop_pods(self) -> None:
        cgroups.kill_pods()
        if any(each.name == "containerd" and each.running for each in self.programs) and containerd.answers(self.site):
            containerd.forget_containers(self.site)
        self._stop_programs("containerd")

    def _stop_programs(self, *names: str) -> None:
        """Ask them to end, in this order; those that were not started are passed over."""
        running = {each.name: each for each in self.programs}
        for name in names:
            if name in running:
                running[name].stop()
