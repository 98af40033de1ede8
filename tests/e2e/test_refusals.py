"""Jobs that cannot come through end with a reason and a sentence that says what to do; nothing is tried in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.control_plane.access import wait_until
from e2e.installation import UNCONFINED, Installation, tiny_uri
from e2e.jobs import FINAL, FineTune, tiny_job

pytestmark = pytest.mark.timeout(900)
LIMIT_S = 420.0
ONCE = {"spec.backoffLimit": 0}
BROKEN = b'{"prompt": "w2 w3", "completion": " w4"}\n{"prompt": "w2 w3", "completion": 7}\n'
QUOTA = {"metadata": {"name": "nothing"}, "spec": {"hard": {"pods": "0"}}}


@dataclass(frozen=True)
class Refused:
    """A job that must fail: its fields, the reason, and what its sentence must name."""

    changes: Mapping[str, Any]
    reason: str
    words: tuple[str, ...]
    where: str = "tenant"
    """tenant; quota, another tenant with a quota of nothing; or stranger, a namespace that has no credentials."""


def memory(pod: str, limit: str) -> dict[str, Any]:
    """Fields of a job whose pods of a kind may use so little memory."""
    return {f"spec.pods.{pod}.resources.limits.memory": limit}


CASES = {
    "bad-rows": Refused({"spec.dataset.uri": tiny_uri("broken.jsonl")}, "DatasetInvalid", ("broken.jsonl", "line 2")),
    "no-secret": Refused({}, "SecretNotFound", ("cloister-storage",), where="stranger"),
    "small-prepare": Refused({**memory("prepare", "64Mi"), **ONCE}, "OutOfMemory", ("Container prepare", "memory")),
    "tiny-worker": Refused({**memory("worker", "300Mi"), **ONCE}, "Internal", ("ray-worker", "memory", "kubectl logs")),
    "small-worker": Refused({**memory("worker", "700Mi"), **ONCE}, "OutOfMemory", ("memory",)),
    "no-quota": Refused({}, "PodsForbidden", ("nothing", "pods=0"), where="quota"),
    "unconfined": Refused({"spec.distribution.profile": UNCONFINED}, "PodsForbidden", ("PodSecurity", "restricted")),
    "no-image": Refused({}, "ImagePullFailed", ("localhost/cloister/trainer:absent",)),
}


@pytest.fixture(scope="module")
def jobs(installation: Installation) -> Iterator[dict[str, FineTune]]:
    """All these jobs, applied at once; the last one while the administrator's settings name an image of no registry."""
    cluster = installation.cluster
    with installation.store() as client:
        client.put_object(Bucket="datasets", Key="tiny/broken.jsonl", Body=BROKEN)
    quotas = f"/api/v1/namespaces/{installation.tenants[1]}/resourcequotas"
    cluster.api.create(quotas, QUOTA)
    spaces = {
        "tenant": installation.tenants[0],
        "quota": installation.tenants[1],
        "stranger": cluster.create_namespace(),
    }

    def apply(name: str) -> FineTune:
        return FineTune.apply(cluster, tiny_job(spaces[CASES[name].where], name, CASES[name].changes))

    applied = {name: apply(name) for name in CASES if name != "no-image"}
    try:
        installation.upgrade("images.trainer.tag=absent", hooks=False)
        try:
            applied["no-image"] = apply("no-image")
            wait_until(lambda: applied["no-image"].status.get("images"), "the operator to take the job", 60.0)
        finally:
            installation.upgrade()
        yield applied
    finally:
        for job in applied.values():
            job.delete()
        cluster.api.delete(f"{quotas}/nothing")
        cluster.delete_namespace(spaces["stranger"])


@pytest.mark.parametrize("name", CASES)
def test_it_ends_with_its_reason_and_a_sentence(jobs: dict[str, FineTune], name: str) -> None:
    job, case = jobs[name], CASES[name]
    wait_until(lambda: job.phase in FINAL, f"the end of {name}", LIMIT_S)
    status = job.status
    assert (status["phase"], status["reason"]) == ("Failed", case.reason), job.told()
    assert status["failure"]["reason"] == case.reason
    for word in case.words:
        assert word in status["message"], status["message"]
    assert any(event.startswith(case.reason) for event in job.events()), job.events()
