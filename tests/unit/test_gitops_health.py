"""What Argo CD's Lua and Flux's CEL in examples/ say of a job, in every phase that the operator's decisions lead to."""

from __future__ import annotations

import copy

import pytest
from cel_expr_python import cel
from lupa.lua51 import LuaRuntime

from cloister_api.reasons import FailureReason
from cloister_api.status import Phase
from cloister_operator.names import Step
from support.examples import Object, of_kind
from support.operator_cases import CASES
from support.operator_values import PREPARED, PUBLISHED
from support.operator_world import World

HEALTH_KEY = "resource.customizations.health.cloister.dev_FineTuneJob"
ARGO = {
    Phase.PENDING: "Progressing",
    Phase.PREPARING: "Progressing",
    Phase.QUEUED: "Progressing",
    Phase.TRAINING: "Progressing",
    Phase.PUBLISHING: "Progressing",
    Phase.SUSPENDED: "Suspended",
    Phase.HELD: "Suspended",
    Phase.COMPLETE: "Healthy",
    Phase.FAILED: "Degraded",
}
FLUX = {Phase.COMPLETE: "Current", Phase.FAILED: "Failed"}
"""In every other phase a job is InProgress."""


def seen() -> list[tuple[str, Object]]:
    """Jobs with the status that the operator gives them: on the straight way, and in every case of a reason."""
    found = [("new", World().job), *straight_way()]
    for case in CASES:
        world = World()
        case.play(world)
        world.step()
        found.append((str(case), copy.deepcopy(world.job)))
    return found


def straight_way() -> list[tuple[str, Object]]:
    """Every status of a job that nothing holds up, from its first look on."""
    world, found = World(), []
    world.other_jobs = [older_job(world)]
    world.step()
    found.append(("behind an older job", copy.deepcopy(world.job)))
    world.other_jobs = []
    for play in (
        lambda: None,
        lambda: world.succeed(Step.PREPARE, PREPARED),
        world.running,
        lambda: world.ray("SUCCEEDED"),
        lambda: world.succeed(Step.PUBLISH, PUBLISHED),
    ):
        play()
        world.settle()
        found.append((str(world.status.phase), copy.deepcopy(world.job)))
    return found


def older_job(world: World) -> Object:
    """Another job with the same output.uri that nobody has looked at yet."""
    metadata = {**world.job["metadata"], "name": "older", "uid": "0", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {**world.job, "metadata": metadata}


JOBS = seen()
IDS = [name for name, _ in JOBS]


def argo_health(job: Object) -> Object:
    """As Argo CD runs a health check: Lua 5.1, the object in `obj`, without the string and os libraries."""
    (config_map,) = of_kind("ConfigMap", "07-argo-cd")
    lua = LuaRuntime(unpack_returned_tuples=True, register_eval=False, register_builtins=False)
    lua.execute("string, os, io, debug, python = nil")
    lua.globals()["obj"] = lua.table_from(job, recursive=True)
    answer = lua.execute(config_map.object["data"][HEALTH_KEY])
    return dict(answer.items())


def flux_health(job: Object) -> str:
    """As Flux evaluates healthCheckExprs: the job's generation first, then inProgress, failed, current."""
    ((check,),) = [
        each.object["spec"]["healthCheckExprs"]
        for each in of_kind("Kustomization", "08-flux")
        if "healthChecks" in each.object["spec"]
    ]
    if job["status"].get("observedGeneration") != job["metadata"]["generation"]:
        return "InProgress"
    environment = cel.NewEnv(variables=dict.fromkeys(job, cel.Type.DYN))
    for name in ("inProgress", "failed", "current"):
        if name in check and environment.compile(check[name]).eval(data=job).value() is True:
            return name[0].upper() + name[1:]
    return "InProgress"


@pytest.mark.parametrize(("name", "job"), JOBS, ids=IDS)
def test_argo_cd_knows_how_a_job_is(name: str, job: Object) -> None:
    health, status = argo_health(job), job.get("status", {})
    if "phase" not in status:
        assert health == {"status": "Progressing", "message": "Waiting for the operator"}
        return
    assert health["status"] == ARGO[Phase(status["phase"])]
    for words in (status["phase"], status.get("reason", ""), status.get("message", "")):
        assert words in health["message"]


@pytest.mark.parametrize(("name", "job"), JOBS, ids=IDS)
def test_flux_waits_for_the_adapter(name: str, job: Object) -> None:
    if "status" in job:
        assert flux_health(job) == FLUX.get(Phase(job["status"]["phase"]), "InProgress")


def test_the_folder_of_jobs_is_waited_for_by_no_kustomization() -> None:
    """Flux applies no newer file of a folder while it waits for health checks of it."""
    waiting = {
        each.object["spec"]["path"]: each.object["spec"].get("wait", False) or "healthChecks" in each.object["spec"]
        for each in of_kind("Kustomization", "08-flux")
    }
    assert waiting == {"./jobs": False, "./gated/contracts-2026-11": True}


def test_every_phase_and_every_reason_to_fail_was_seen() -> None:
    statuses = [job["status"] for _, job in JOBS if "status" in job]
    assert {each["phase"] for each in statuses} == set(Phase)
    last_words = {each["failure"]["reason"] for each in statuses if "failure" in each}
    assert {reason for reason in FailureReason if not reason.facts.retryable} <= last_words


def test_progress_stands_in_the_message() -> None:
    job = {"status": {"phase": "Training", "progress": {"summary": "37%"}}}
    assert argo_health(job) == {"status": "Progressing", "message": "Training, 37%"}


def test_a_stored_job_that_cannot_be_read_is_degraded_and_failed() -> None:
    world = World()
    world.settle()
    world.job["spec"]["training"] = {"epochs": "many"}
    world.step()
    assert world.status.phase == Phase.PREPARING
    assert argo_health(world.job)["status"] == "Degraded"
    assert flux_health(world.job) == "Failed"


def test_a_job_whose_change_was_not_seen_yet_is_in_progress_for_flux() -> None:
    (name, complete) = next((name, job) for name, job in JOBS if job.get("status", {}).get("phase") == "Complete")
    assert flux_health(complete) == "Current", name
    changed = {**complete, "metadata": {**complete["metadata"], "generation": 2}}
    assert flux_health(changed) == "InProgress"
