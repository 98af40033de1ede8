"""The control plane that tests stand on: real refusals, loopback only, ended by whatever ends its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import urllib3

from cloister_api.job import API_VERSION, KIND
from cluster.control_plane import plane as plane_module
from cluster.control_plane.access import Cluster, KubectlError, named_cluster, wait_until
from cluster.control_plane.api import Api, ApiError
from cluster.control_plane.plane import ControlPlane
from cluster.jobs import create_job, jobs_path
from support.child_process import Program

LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as /proc/net/tcp writes them."""


def listening_addresses(pid: int) -> list[str]:
    """Addresses (hexadecimal, without ports) on which a process listens."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_everything_listens_on_loopback_only(control_plane: ControlPlane) -> None:
    for program in control_plane.programs:
        addresses = listening_addresses(program.pid)
        assert addresses, program.name
        assert set(addresses) <= set(LOOPBACK), program.name


def test_a_user_without_a_role_may_do_nothing(control_plane: ControlPlane, namespace: str) -> None:
    with Api(control_plane.user_kubeconfig("nobody")) as api, pytest.raises(ApiError) as refusal:
        api.get(jobs_path(namespace))
    assert refusal.value.code == 403
    assert 'User "nobody" cannot list resource "finetunejobs"' in refusal.value.message


def test_the_server_and_its_clients_prove_who_they_are(control_plane: ControlPlane) -> None:
    server = control_plane.api.server
    with urllib3.PoolManager(retries=False) as strange, pytest.raises(urllib3.exceptions.SSLError):
        strange.request("GET", f"{server}/readyz")
    with urllib3.PoolManager(retries=False, ca_certs=str(control_plane.folder / "ca.crt")) as anonymous:
        assert anonymous.request("GET", f"{server}/readyz").status == 401


def test_a_pod_that_is_not_restricted_is_refused(cluster: Cluster, namespace: str) -> None:
    pod = {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    with pytest.raises(ApiError, match='violates PodSecurity "restricted:latest"'):
        cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)


def test_blocking_an_owner_s_deletion_needs_a_permission(control_plane: ControlPlane, namespace: str) -> None:
    """The case of OpenShift: creating a child that blocks needs `update` on the owner's finalizers."""
    job = create_job(control_plane, namespace)
    control_plane.kubectl("create", "serviceaccount", "maker", namespace=namespace)
    control_plane.kubectl("create", "role", "maker", "--verb=create", "--resource=configmaps", namespace=namespace)
    control_plane.kubectl(
        "create", "rolebinding", "maker", "--role=maker", f"--serviceaccount={namespace}:maker", namespace=namespace
    )
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "contracts", "uid": job["metadata"]["uid"]}
    child = {"metadata": {"name": "x", "ownerReferences": [owner | {"blockOwnerDeletion": True}]}}
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "maker", control_plane.folder)
    with Api(kubeconfig) as api, pytest.raises(ApiError, match="cannot set blockOwnerDeletion"):
        api.create(f"/api/v1/namespaces/{namespace}/configmaps", child)


def test_children_go_with_their_owner(control_plane: ControlPlane, namespace: str) -> None:
    job = create_job(control_plane, namespace)
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "contracts", "uid": job["metadata"]["uid"]}
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    control_plane.api.create(path, {"metadata": {"name": "x", "ownerReferences": [owner]}})
    control_plane.api.delete(jobs_path(namespace, "contracts"))
    wait_until(lambda: not control_plane.api.exists(f"{path}/x"), "the garbage collector")


def test_objects_outlive_the_api_server(control_plane: ControlPlane, namespace: str) -> None:
    before = create_job(control_plane, namespace)
    server = control_plane.program("kube-apiserver")
    server.kill()
    with pytest.raises(urllib3.exceptions.HTTPError):
        control_plane.api.get("/readyz")
    server.start()
    control_plane.wait_until_ready()
    assert control_plane.api.get(jobs_path(namespace, "contracts")) == before


def test_only_namespaces_of_tests_are_deleted(cluster: Cluster) -> None:
    with pytest.raises(PermissionError, match="no test made it"):
        cluster.delete_namespace("default")


def test_another_cluster_is_used_only_by_its_name(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    with pytest.raises(KubectlError, match="CLOISTER_TEST_CLUSTER names the context prod"):
        named_cluster("prod", tmp_path, "CLOISTER_TEST_CLUSTER")
    named = named_cluster("cloister-test", tmp_path, "CLOISTER_TEST_CLUSTER")
    assert named.api.get("/readyz") == "ok"
    named.close()


def test_kubectl_never_sees_the_user_s_own_kubeconfig(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    assert control_plane.kubectl("config", "current-context").strip() == "cloister-test"
    assert control_plane.environment()["KUBECONFIG"] == str(control_plane.kubeconfig)


def test_a_start_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    real = plane_module.program
    monkeypatch.setattr(plane_module, "START_ATTEMPTS", 1)
    broken = {"kube-scheduler": Path("/bin/false")}
    monkeypatch.setattr(plane_module, "program", lambda name: broken.get(name) or real(name))
    pids: list[int] = []
    start = Program.start

    def start_and_note(program: Program) -> None:
        start(program)
        pids.append(program.pid)

    monkeypatch.setattr(Program, "start", start_and_note)
    plane = ControlPlane()
    with pytest.raises(RuntimeError, match="kube-scheduler ended"):
        plane.start()
    assert len(pids) == 4
    assert not any(map(is_alive, pids))
    assert not plane.folder.exists()


OWNER = """
from cluster.control_plane.plane import ControlPlane
plane = ControlPlane().start()
print(plane.folder, *(program.pid for program in plane.programs), flush=True)
input()
"""


def test_all_programs_end_with_a_killed_owner() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout
        folder, *pids = owner.stdout.readline().split()
        assert len(pids) == 4
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids), "the end of all programs")
    subprocess.run(["rm", "-r", folder], check=True)  # the one thing that a killed owner leaves
