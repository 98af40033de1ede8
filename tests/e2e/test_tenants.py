"""Two teams on one cluster: neither reads the other's data, nor reaches the other's pods, nor drives its Ray."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from botocore.exceptions import ClientError

from cluster.control_plane.access import Cluster, KubectlError, wait_until
from cluster.control_plane.binaries import program
from cluster.jobs import jobs_path
from e2e.cluster.node import Node
from e2e.installation import Installation
from e2e.jobs import FINAL, FineTune, long_job, tiny_job
from e2e.pods import create_pod, reaches, ready_address
from support.seaweedfs import free_ports

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]
DASHBOARD, AGENT = 8265, 52365
ENDLESS = 1_000_000


@pytest.fixture(scope="module")
def run(installation: Installation) -> Iterator[FineTune]:
    """A job of the first team that trains until it is deleted."""
    job = FineTune.apply(installation.cluster, long_job(installation.tenants[0], "theirs", ENDLESS))
    job.wait_for_newer_checkpoint()
    yield job
    job.delete()


def test_credentials_of_one_team_do_not_read_the_others_data(run: FineTune, installation: Installation) -> None:
    uid = run.read()["metadata"]["uid"]
    theirs, ours = installation.tenants
    key = f"{theirs}/{uid}/run.json"
    with installation.store(f"{theirs}/cloister-storage") as client:
        assert client.get_object(Bucket="cloister-runs", Key=key)["ContentLength"] > 0
    with installation.store(f"{ours}/cloister-storage") as client:
        with pytest.raises(ClientError, match="AccessDenied"):
            client.get_object(Bucket="cloister-runs", Key=key)
        with pytest.raises(ClientError, match="AccessDenied"):
            client.put_object(Bucket="adapters", Key=f"{theirs}/orders/current.json", Body=b"{}")


def test_a_job_cannot_take_the_others_data(run: FineTune, installation: Installation) -> None:
    uid = run.read()["metadata"]["uid"]
    theirs, ours = installation.tenants
    stolen = {"spec.dataset.uri": f"s3://cloister-runs/{theirs}/{uid}/run.json"}
    job = FineTune.apply(installation.cluster, tiny_job(ours, "thief", stolen))
    wait_until(lambda: job.phase in FINAL, "the job's end", 240.0)
    assert (job.phase, job.status["reason"]) == ("Failed", "StorageAccessDenied"), job.told()


def test_an_account_of_one_namespace_does_not_read_the_others_jobs(
    run: FineTune, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("account")
    kubeconfig = run.cluster.service_account_kubeconfig(installation.tenants[1], "default", folder)
    with pytest.raises(KubectlError, match="forbidden"):
        Cluster(kubeconfig).kubectl("get", "--raw", jobs_path(run.namespace, run.name))


@pytest.mark.parametrize("labelled", [False, True], ids=["any-pod", "pod-of-another-job"])
def test_pods_are_out_of_reach(run: FineTune, installation: Installation, node: Node, labelled: bool) -> None:
    ours = installation.tenants[1]
    name = f"neighbour-{labelled}".lower()
    create_pod(node, ours, name, labels={"cloister.dev/job": "other"} if labelled else {})
    ready_address(node, ours, name)
    targets = [(addresses(run, "head")[0], DASHBOARD), *((each, AGENT) for each in addresses(run, "worker"))]
    assert len(targets) == 3
    assert [reaches(node, ours, name, *target) for target in targets] == [False] * 3
    with node.policies.switched_off():
        for target in targets:
            wait_until(lambda each=target: reaches(node, ours, name, *each), f"an answer from {target}")
    node.kubectl("delete", "pod", name, "--wait=false", namespace=ours)


def test_rays_dashboard_refuses_a_caller_without_the_token(run: FineTune) -> None:
    with forwarded(run, DASHBOARD) as port:
        for path in ("/api/jobs/", "/api/version", "/nodes"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
            refused.value.close()
            assert refused.value.code in (401, 403), path
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/", method="POST", data=b"{}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
        assert refused.value.code in (401, 403)


def test_no_pod_holds_a_token_of_the_cluster(run: FineTune) -> None:
    for role in ("head", "worker", "submitter"):
        for pod in run.pods(role):
            found = run.cluster.kubectl(
                "exec", pod["metadata"]["name"], "--", "sh", "-c", "ls /var/run/secrets 2>/dev/null; true",
                namespace=run.namespace,
            )  # fmt: skip
            assert found.strip() == "", pod["metadata"]["name"]


def addresses(run: FineTune, role: str) -> list[str]:
    return [pod["status"]["podIP"] for pod in run.pods(role)]


@contextmanager
def forwarded(run: FineTune, remote: int) -> Iterator[int]:
    """A local port that `kubectl port-forward` connects with the head's."""
    (port,) = free_ports(1)
    (head,) = run.running_pods("head")
    command = [
        str(program("kubectl")), "--kubeconfig", str(run.cluster.kubeconfig), "port-forward",
        "--namespace", run.namespace, f"pod/{head}", f"{port}:{remote}",
    ]  # fmt: skip
    with subprocess.Popen(command, env=run.cluster.environment(), stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout and "Forwarding" in forward.stdout.readline()
            yield port
        finally:
            forward.terminate()
