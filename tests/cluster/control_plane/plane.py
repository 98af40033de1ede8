"""The control plane itself: etcd, the API server, the controller manager and the scheduler, on ports of 127.0.0.1."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3

from cluster.control_plane.access import Cluster, cluster_entry, user_entry, wait_until, write_kubeconfig
from cluster.control_plane.binaries import program
from cluster.control_plane.certificates import Authority, key_pair, write_secret
from support.child_process import Program
from support.seaweedfs import free_ports

HOST = "127.0.0.1"
SERVICE_RANGE = "10.96.0.0/16"
START_ATTEMPTS = 3
"""Another process may take a port between our look and a server's bind."""
CLIENT_RATE = ["--kube-api-qps=200", "--kube-api-burst=400"]
"""The default of 20 calls a second would make thousands of jobs wait for the controllers, not for what is tested."""


class ControlPlane(Cluster):
    """One control plane with all its data in a folder of its own, deleted at the end; in a given folder the logs stay.

    Every program is a child of this process, dies with it, and is stopped by its pid. A cluster with a node is one that
    pods reach: it says so in the attributes and flags below.
    """

    host = HOST
    """Where the API server listens."""
    secure_port: int | None = None
    """The API server's port; None: any that is free."""
    keeps_data = False
    """Whether a start goes on with the objects and keys that the folder holds."""

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="cloister-control-plane-"))
        self.logs = self.folder / "logs"
        super().__init__(self.folder / "admin.kubeconfig")
        self.programs: list[Program] = []
        self._authority = Authority("cloister-test-ca")

    def api_server_flags(self) -> list[str]:
        """What the API server is told about pods: here that there are none that could call it."""
        return ["--endpoint-reconciler-type=none"]

    def controller_manager_flags(self) -> list[str]:
        """What the controller manager is told about pods."""
        return []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all four and wait until pods can be made. RuntimeError with the logs' ends when that fails."""
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start_once()
                return self
            except RuntimeError:
                self._kill_all()
                if attempt == START_ATTEMPTS:
                    self.stop()
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Kill all programs, newest first, and delete their data. May be called twice."""
        self._kill_all()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.folder.glob("*"):
            if path.is_dir() and path != self.logs:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file():
                path.unlink()

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Program:
        """Start one more program, to be stopped with the others."""
        started = Program(name, command, self.logs, environment)
        self.programs.append(started)
        started.start()
        return started

    def program(self, name: str) -> Program:
        """The program of that name: to stop, kill or start it again in a test."""
        return next(each for each in self.programs if each.name == name)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the API server says that it is ready; RuntimeError when it ended or never does."""
        self._wait_for(lambda: self.api.get("/readyz") == "ok", self.program("kube-apiserver"), timeout_s)

    def wait_for_port(self, started: Program, url: str, timeout_s: float = 60.0) -> None:
        """Wait until a program answers 200 at a URL of its own; RuntimeError when it ended or never does."""
        certificate, key = (str(file) for file in self._harness)
        ca = str(self.folder / "ca.crt")
        with urllib3.PoolManager(retries=False, ca_certs=ca, cert_file=certificate, key_file=key) as pool:
            self._wait_for(lambda: pool.request("GET", url, timeout=2.0).status == 200, started, timeout_s)

    def user_kubeconfig(self, name: str, group: str | None = None) -> Path:
        """A kubeconfig for a user (and group) that the API server knows by certificate."""
        file = self.folder / f"{name.replace(':', '-')}.kubeconfig"
        return write_kubeconfig(file, self._cluster_entry, user_entry(self._authority.client(name, group)))

    def server_certificate(self, name: str, hosts: Sequence[str] = (HOST,)) -> tuple[Path, Path]:
        """Files of a certificate and key for a server, signed by the cluster's authority."""
        return self._authority.server(hosts).write(self.folder, name)

    def _start_once(self) -> None:
        if not self.keeps_data:
            shutil.rmtree(self.folder / "etcd", ignore_errors=True)
        etcd, peer, secure, manager, scheduler = free_ports(5)
        secure = self.secure_port or secure
        self._cluster_entry = cluster_entry(f"https://{self.host}:{secure}", self._authority.certified.certificate)
        self._authority.certified.write(self.folder, "ca")
        self._harness = self._authority.client("cloister-tests").write(self.folder, "cloister-tests")
        self.user_kubeconfig("admin", "system:masters")
        self._start_etcd(etcd, peer)
        self._start_api_server(etcd, secure)
        self._start_controllers(manager, scheduler)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait_for(lambda: self.api.exists(account), self.program("kube-controller-manager"))

    def _start_etcd(self, port: int, peer: int) -> None:
        """With TLS both ways: neither can the API server take another etcd for ours, nor another program use ours."""
        client_url, peer_url = f"https://{HOST}:{port}", f"http://{HOST}:{peer}"
        certificate, key = self.server_certificate("etcd")
        started = self.run(
            "etcd",
            [
                str(program("etcd")), "--name=e", f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync",
                f"--listen-client-urls={client_url}", f"--advertise-client-urls={client_url}",
                f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=e={peer_url}", "--log-level=warn", "--enable-grpc-gateway=false",
                f"--cert-file={certificate}", f"--key-file={key}",
                "--client-cert-auth=true", f"--trusted-ca-file={self.folder / 'ca.crt'}",
            ],
        )  # fmt: skip
        self.wait_for_port(started, f"{client_url}/health")

    def _start_api_server(self, etcd: int, port: int) -> None:
        services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1"]
        names = [self.host, HOST, "localhost", *services]
        certificate, key = self.server_certificate("kube-apiserver", names)
        signing_key, public_key = self._service_account_keys()
        self.run(
            "kube-apiserver",
            [
                str(program("kube-apiserver")), f"--etcd-servers=https://{HOST}:{etcd}",
                f"--etcd-cafile={self.folder / 'ca.crt'}", f"--etcd-certfile={self._harness[0]}",
                f"--etcd-keyfile={self._harness[1]}",
                f"--bind-address={self.host}", f"--advertise-address={self.host}", f"--secure-port={port}",
                f"--service-cluster-ip-range={SERVICE_RANGE}",
                f"--client-ca-file={self.folder / 'ca.crt'}",
                f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={public_key}",
                f"--service-account-signing-key-file={signing_key}",
                "--kubelet-preferred-address-types=InternalIP",
                "--authorization-mode=Node,RBAC", "--anonymous-auth=false", "--profiling=false",
                "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
                *self.api_server_flags(),
            ],
        )  # fmt: skip
        self.wait_until_ready()

    def _service_account_keys(self) -> tuple[Path, Path]:
        """Files of the key that signs service accounts' tokens, and of its public half."""
        private_file, public_file = self.folder / "service-accounts.key", self.folder / "service-accounts.pub"
        if not (self.keeps_data and public_file.exists()):
            private, public = key_pair()
            write_secret(private_file, private)
            public_file.write_bytes(public)
        return private_file, public_file

    def _start_controllers(self, manager_port: int, scheduler_port: int) -> None:
        authority_files = (self.folder / "ca.crt", self.folder / "ca.key")
        self._start_controller(
            "kube-controller-manager", manager_port,
            [
                "--use-service-account-credentials=true", f"--root-ca-file={authority_files[0]}",
                f"--service-account-private-key-file={self.folder / 'service-accounts.key'}",
                f"--cluster-signing-cert-file={authority_files[0]}", f"--cluster-signing-key-file={authority_files[1]}",
                f"--service-cluster-ip-range={SERVICE_RANGE}", "--node-monitor-grace-period=60s",
                *self.controller_manager_flags(),
            ],
        )  # fmt: skip
        self._start_controller("kube-scheduler", scheduler_port, [])

    def _start_controller(self, name: str, port: int, arguments: list[str]) -> None:
        kubeconfig = self.user_kubeconfig(f"system:{name}")
        certificate, key = self.server_certificate(name)
        command = [
            str(program(name)), f"--kubeconfig={kubeconfig}", f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}", f"--bind-address={HOST}", f"--secure-port={port}",
            f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}", "--leader-elect=false",
            "--profiling=false", *CLIENT_RATE, *arguments,
        ]  # fmt: skip
        self.wait_for_port(self.run(name, command), f"https://{HOST}:{port}/healthz")

    def _wait_for(self, condition: Callable[[], object], started: Program, timeout_s: float = 60.0) -> None:
        def ended_or_ready() -> object:
            return not started.running or condition()

        try:
            wait_until(ended_or_ready, started.name, timeout_s)
        except TimeoutError as error:
            raise RuntimeError(f"{error}\nThe end of its log:\n{started.log_end()}") from None
        if not started.running:
            raise RuntimeError(f"{started.name} ended. The end of its log:\n{started.log_end()}")

    def _kill_all(self) -> None:
        self.close()
        for each in reversed(self.programs):
            each.kill()
        self.programs.clear()
