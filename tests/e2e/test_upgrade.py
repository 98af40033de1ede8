"""What an administrator does: ask whether the cluster is ready, and upgrade while jobs run."""

from __future__ import annotations

import pytest

from e2e.cluster.node import Node
from e2e.installation import Installation
from e2e.jobs import FineTune, long_job, tiny_job

pytestmark = [pytest.mark.timeout(1200), pytest.mark.full]
STEPS = 300
NOW, NEXT = "localhost/cloister/trainer:dev", "localhost/cloister/trainer:next"


def test_an_upgrade_with_a_new_trainer_leaves_a_running_job_alone(node: Node, installation: Installation) -> None:
    tenant = installation.tenants[0]
    node.name_image(NOW, NEXT)
    running = FineTune.apply(node, long_job(tenant, "running", STEPS))
    running.wait_for("Training")
    pods = {pod["metadata"]["uid"] for role in ("head", "worker") for pod in running.pods(role)}
    installation.upgrade("images.trainer.tag=next")
    try:
        running.wait_for_newer_checkpoint()
        assert {pod["metadata"]["uid"] for role in ("head", "worker") for pod in running.pods(role)} == pods
        new = FineTune.apply(node, tiny_job(tenant, "after-upgrade"))
        status = running.wait_for("Complete")
        assert [each["reason"] for each in status["attempts"]] == ["Complete"]
        assert images(running) == {NOW}
        new.wait_for("Complete")
        assert images(new) == {NEXT}
    finally:
        installation.upgrade()
        node.forget_name(NEXT)


def test_helm_test_says_that_the_cluster_is_ready(installation: Installation) -> None:
    printed = installation.try_out()
    print(printed)
    rows = [line.partition("  ") for line in printed.splitlines()]
    for question in ("KubeRay", "Kueue", "NetworkPolicies", "conditional writes", "DNS", "mages"):
        answers = [answer.lstrip() for asked, gap, answer in rows if question in asked and gap]
        assert 1 <= len(answers) <= 2, f"{question}\n{printed}"
        assert all(answer.startswith("yes ") for answer in answers), f"{question}\n{printed}"


def images(job: FineTune) -> set[str]:
    """Images of the containers of its prepare and publish pods."""
    pods = [pod for role in ("prepare", "publish") for pod in job.pods(role)]
    return {container["image"] for pod in pods for container in pod["spec"]["containers"]}
