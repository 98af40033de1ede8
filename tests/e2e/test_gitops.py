"""A job that a GitOps tool deletes and applies again trains once; a failed one goes on in another."""

from __future__ import annotations

import pytest

from e2e.installation import Installation
from e2e.jobs import FineTune, long_job, tiny_job

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]
STEPS = 100
ENDLESS = 1_000_000


def test_reuse_trains_once_however_often_it_is_applied(installation: Installation) -> None:
    manifest = tiny_job(installation.tenants[0], "reused", {"spec.output.ifExists": "Reuse"})
    first = FineTune.apply(installation.cluster, manifest)
    published = first.wait_for("Complete")["output"]
    for _ in range(2):
        first.delete()
        again = FineTune.apply(installation.cluster, manifest)
        status = again.wait_for("Complete")
        assert status["reason"] == "AlreadyPublished"
        assert (status["output"], status.get("attempt", 0)) == (published, 0)
        assert not any(map(again.pods, ("head", "worker", "submitter")))


def test_a_job_that_failed_for_good_goes_on_by_resume_from(installation: Installation) -> None:
    tenant = installation.tenants[0]
    late = FineTune.apply(installation.cluster, long_job(tenant, "late", ENDLESS))
    late.wait_for_newer_checkpoint()
    late.patch({"activeDeadlineSeconds": 1})
    late.wait(lambda: late.phase == "Failed", "the deadline")
    failed = late.status
    assert failed["reason"] == "DeadlineExceeded"
    uid = late.read()["metadata"]["uid"]
    folder = f"s3://cloister-runs/{tenant}/{uid}"
    assert f"resumeFrom: {{uri: {folder}}}" in failed["message"]

    resumed = FineTune.apply(
        installation.cluster,
        long_job(tenant, "resumed", failed["checkpoint"]["step"] + STEPS, {"spec.resumeFrom": {"uri": folder}}),
    )
    resumed.wait(resumed.starts, "its first step")
    ((_, first),) = resumed.starts()
    assert first > failed["checkpoint"]["step"]
    resumed.wait_for("Complete")
