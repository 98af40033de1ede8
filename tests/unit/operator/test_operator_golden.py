"""Children of whole jobs, byte for byte, and what must be true of every one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister_api.run import Run
from cloister_api.yaml_tree import read_documents
from cloister_operator.render.ray_job import NO_CLOUD
from support.operator_golden import cases, children

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_job_has_exactly_these_children(case: Path) -> None:
    assert (case / "children.yaml").read_text() == children(case), "run make golden and look at the difference"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return [document.value for document in read_documents((request.param / "children.yaml").read_text())]


def test_no_pod_asks_for_a_privilege(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & pod.keys()
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
        kinds = {kind for volume in pod["volumes"] for kind in volume} - {"name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "ephemeral"}


def test_a_mounted_secret_shows_one_named_file_only(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects):
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert [item["key"] for item in volume["secret"]["items"]] in (["ca.crt"], ["private.pem"])


def test_no_command_line_holds_a_word_of_the_job(objects: list[dict[str, Any]]) -> None:
    plain = re.compile(r"[a-z_./ -]+(run\.json)?( --check)?")
    for found in objects:
        if found["kind"] == "RayJob":
            assert plain.fullmatch(found["spec"]["entrypoint"])
    for pod in pods(objects):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert plain.fullmatch(" ".join(container.get("command", [])) or "-")
            assert container.get("args", [NO_CLOUD]) == [NO_CLOUD]


def test_children_belong_to_their_job_and_the_deny_policy_to_nobody(objects: list[dict[str, Any]]) -> None:
    for found in objects:
        owners = found["metadata"].get("ownerReferences", [])
        assert [owner["kind"] for owner in owners] == (
            [] if found["metadata"]["name"] == "cloister-default-deny" else ["FineTuneJob"]
        )


def test_the_run_file_is_one_that_the_steps_read(objects: list[dict[str, Any]]) -> None:
    (config_map,) = [found for found in objects if found["kind"] == "ConfigMap"]
    run = Run.model_validate_json(config_map["data"]["run.json"], strict=True)
    assert run.spec.storage.run_uri
    assert config_map["immutable"] is True


def test_only_workers_have_gpus_and_only_ray_jobs_the_queue(objects: list[dict[str, Any]]) -> None:
    for found in objects:
        labels = found["metadata"].get("labels", {})
        if found["kind"] != "RayJob":
            assert labels.get("kueue.x-k8s.io/queue-name") in (None, "small")
    for pod in pods(objects):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if container["name"] != "ray-worker":
                assert set(container["resources"].get("limits", {})) <= {"cpu", "memory", "ephemeral-storage"}


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The specs of all pods that the objects make."""
    for found in objects:
        if found["kind"] == "Job":
            yield found["spec"]["template"]["spec"]
        elif found["kind"] == "RayJob":
            cluster = found["spec"]["rayClusterSpec"]
            yield found["spec"]["submitterPodTemplate"]["spec"]
            yield cluster["headGroupSpec"]["template"]["spec"]
            yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
