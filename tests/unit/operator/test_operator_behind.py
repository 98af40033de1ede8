"""Watches that are behind, lists that are old, labels that are gone: what is not seen is not taken for what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cloister_api.events import EvaluationDone, Progress
from cloister_operator.cluster import ClusterError, Listing
from cloister_operator.handlers import IDLE_SECONDS, Operator, Patient
from cloister_operator.names import DENY_POLICY, MANAGED_BY_LABEL, MANAGER, Step
from cloister_operator.reconcile import Reconciler
from cloister_operator.settings_file import Configuration
from cloister_operator.store import Store
from support.memory_cluster import KINDS, MemoryCluster
from support.operator_values import PREPARED
from support.operator_world import World

KEY = ("legal", "contracts")
KILLED = {"terminated": {"exitCode": 137, "reason": "Error"}}
STEP = Progress(step=9, total_steps=90, epoch=0.1, loss=1, learning_rate=0, tokens_per_second=0, eta_seconds=0)


def stored(world: World, *kinds: str) -> Store:
    """A store that knows the job and these kinds."""
    store = Store()
    for kind in kinds or KINDS:
        for found in world.find(kind):
            store.put(kind, found)
            store.file(kind, found, KEY)
    store.put("FineTuneJob", world.job)
    return store


def look(world: World, store: Store) -> None:
    asyncio.run(Reconciler(MemoryCluster(world), store, world.settings, clock=lambda: world.now)(KEY))


def test_a_pod_that_was_last_seen_running_is_read_before_its_job_is_called_silent() -> None:
    world = World({"spec.backoffLimit": 0})
    world.settle()
    running = world.pod(world.step_job(Step.PREPARE), "prepare", container="prepare")
    store = stored(world)
    del world.objects["Pod", running["metadata"]["name"]]
    world.succeed(Step.PREPARE, PREPARED)
    (ended,) = world.find("Pod")
    ended["metadata"]["uid"] = running["metadata"]["uid"]
    world.bump(ended)
    world.bump(world.step_job(Step.PREPARE))
    store.put("Job", world.step_job(Step.PREPARE))
    look(world, store)
    assert world.conditions()["Prepared"][0] == "True"


def test_a_run_that_only_lost_its_label_goes_on() -> None:
    world = World()
    world.prepared()
    world.running()
    world.settle()
    store = stored(world)
    world.bump(world.ray_job)  # the removal is the newest write, and the watch's DELETED has its version
    store.drop("RayJob", world.ray_job)
    look(world, store)
    assert world.status.phase == "Training" and world.status.attempts and world.status.attempts[-1].end is None
    store.replace("RayJob", [], world.version + 100)
    look(world, store)
    assert world.status.attempts and world.status.attempts[-1].end is None, "a list by labels lacks it, too"


def test_an_object_that_goes_while_it_is_read_brings_no_ghost() -> None:
    world, store = World(), Store()
    since = store.moment
    store.drop("FineTuneJob", world.job)
    store.found("FineTuneJob", world.job, KEY, since)
    assert store.of("FineTuneJob", KEY) == []


def test_a_pod_that_failed_before_the_one_that_succeeded_is_not_the_last_word() -> None:
    world = World({"spec.backoffLimit": 0})
    world.settle()
    failed = world.pod(world.step_job(Step.PREPARE), "prepare", phase="Failed", container="prepare", state=KILLED)
    store = stored(world)
    world.pass_time(seconds=30)
    world.succeed(Step.PREPARE, PREPARED)
    assert failed in world.find("Pod")
    world.bump(world.step_job(Step.PREPARE))
    store.put("Job", world.step_job(Step.PREPARE))
    look(world, store)
    assert world.conditions()["Prepared"][0] == "True"


def hindered() -> World:
    """A job that trains, whose run file somebody deleted, and the cluster refuses a new one."""
    world = World({"spec.backoffLimit": 0})
    world.prepared()
    world.running()
    world.settle()
    del world.objects["ConfigMap", "contracts-run"]
    world.refused = {"contracts-run": "403 exceeded quota: count/configmaps"}
    world.settle()
    return world


def test_what_is_refused_to_a_job_that_trains_ends_it_never() -> None:
    world = hindered()
    world.pass_time(hours=1)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Training", "PodsForbidden")
    assert "What runs goes on" in (world.status.message or "")
    world.ray("SUCCEEDED")
    world.settle()
    assert world.status.phase == "Publishing" and ("Job", "contracts-publish") not in world.objects
    world.refused = {}
    world.settle()
    assert world.status.reason is None and ("Job", "contracts-publish") in world.objects


def test_a_hindered_job_still_does_what_its_owner_says() -> None:
    world = hindered()
    world.change("suspend", True)
    world.settle()
    assert world.status.phase == "Suspended" and not world.find("RayJob")


def test_the_next_attempt_waits_for_pods_that_a_deleted_run_left() -> None:
    world = World()
    world.prepared()
    world.running()
    world.settle()
    cluster = world.cluster()
    del world.objects["RayJob", "contracts-1"]
    for _ in range(3):
        world.step()
        world.pass_time(minutes=1)
    assert not world.find("RayJob")
    assert "end before the next attempt starts" in (world.status.message or "")
    for pod in world.find("Pod"):
        if pod["metadata"]["ownerReferences"][0]["uid"] == cluster["metadata"]["uid"]:
            del world.objects["Pod", pod["metadata"]["name"]]
    world.step()
    assert [found["metadata"]["name"] for found in world.find("RayJob")] == ["contracts-2"]


def test_an_answer_that_comes_after_the_end_of_an_object_brings_no_ghost() -> None:
    world, store = World(), Store()
    store.put("FineTuneJob", world.job)
    store.drop("FineTuneJob", world.job, version=world.version + 5)
    assert not store.put("FineTuneJob", world.job)
    later = {**world.job, "metadata": {**world.job["metadata"], "resourceVersion": str(world.version + 6)}}
    assert store.put("FineTuneJob", later), "a label that is set again"


def test_what_a_list_shows_is_looked_at_though_the_next_list_fails() -> None:
    world = World()

    class Broken(MemoryCluster):
        async def list(self, kind: str, namespace: str | None, **selectors: str) -> Listing | None:
            if kind == "RayCluster":
                raise ClusterError(500, "conversion webhook failed")
            return await super().list(kind, namespace, **selectors)

    async def run() -> int:
        operator = Operator(Configuration(world.settings, None), 0, 0, 0)
        with pytest.raises(ClusterError):
            await operator._resync(Broken(world), Reconciler(Broken(world), operator.store, world.settings))
        return len(operator.queue)

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("head", ["gone", "Pending", "Failed"])
def test_without_a_running_head_nothing_trains(head: str) -> None:
    world = World()
    world.prepared()
    world.running()
    world.settle()
    assert world.status.phase == "Training"
    for pod in [pod for pod in world.find("Pod") if pod["metadata"]["labels"].get("ray.io/node-type") == "head"]:
        if head == "gone":
            del world.objects["Pod", pod["metadata"]["name"]]
        else:
            pod["status"]["phase"] = head
    world.settle()
    assert (world.status.phase, world.conditions()["Running"][0]) == ("Queued", "False")
    assert world.status.attempts and world.status.attempts[0].restarts == 1


def test_a_long_pull_before_the_first_error_does_not_use_up_the_patience() -> None:
    world = World()
    world.settle()
    pod = world.pod(world.step_job(Step.PREPARE), "prepare", phase="Pending")
    world.settle()
    world.pass_time(minutes=12)
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ErrImagePull", "message": "reset"}}
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Preparing", "ImagePullFailed")
    world.pass_time(minutes=9)
    world.settle()
    assert world.status.phase == "Preparing"
    world.pass_time(minutes=1)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "ImagePullFailed")


def test_an_edited_policy_becomes_what_it_was_without_what_was_added() -> None:
    world = World()
    world.settle()
    policy = world.objects["NetworkPolicy", DENY_POLICY]
    before = {**policy["spec"]}
    policy["spec"] = {**before, "egress": [{}]}
    world.settle()
    assert world.objects["NetworkPolicy", DENY_POLICY]["spec"] == before


def test_a_policy_that_is_changed_as_soon_as_it_is_written_is_told_and_keeps_pods_away() -> None:
    world = World()
    world.settle()
    world.succeed(Step.PREPARE, PREPARED)
    store, cluster = stored(world), MemoryCluster(world)
    edited = {**world.objects["NetworkPolicy", DENY_POLICY]["spec"], "egress": [{}]}
    world.patch("NetworkPolicy", DENY_POLICY, {"spec": edited})
    store.put("NetworkPolicy", world.objects["NetworkPolicy", DENY_POLICY])

    async def mutated(kind: str, found: dict[str, Any], patch: Any) -> dict[str, Any]:
        return await MemoryCluster.patch(cluster, kind, found, {"spec": edited})

    cluster.patch = mutated  # type: ignore[method-assign]
    reconciler = Reconciler(cluster, store, world.settings, clock=lambda: world.now)
    for _ in range(3):
        with pytest.raises(Exception, match="does not become"):
            asyncio.run(reconciler(KEY))
    assert world.status.reason == "PodsForbidden" and "changes it" in (world.status.message or "")
    assert not world.find("RayJob")


def test_a_deny_policy_without_our_label_ends_no_job() -> None:
    world = World()
    world.prepared()
    world.running()
    world.settle()
    del world.objects["NetworkPolicy", DENY_POLICY]["metadata"]["labels"]
    world.settle()
    assert world.status.phase == "Training", "it says what it should"
    world.objects["NetworkPolicy", DENY_POLICY]["spec"] = {"podSelector": {}}
    world.step()
    assert (world.status.phase, world.status.reason) == ("Training", "NameConflict")
    world.say(STEP)
    world.step()
    assert world.find("RayJob") and world.status.progress and world.status.progress.step == 9, "it is still looked at"
    world.objects["NetworkPolicy", DENY_POLICY]["metadata"]["labels"] = {MANAGED_BY_LABEL: MANAGER}
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Training", None)


def test_a_job_keeps_the_image_that_it_was_accepted_with() -> None:
    world = World()
    world.settle()
    images = world.settings.images.model_copy(update={"trainer": "registry.internal/cloister/trainer@sha256:4567"})
    world.settings = world.settings.model_copy(update={"images": images})
    world.succeed(Step.PREPARE, PREPARED)
    world.settle()
    head = world.ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == (world.status.images or {})["trainer"] == "registry.internal/cloister/trainer@sha256:0123"


def test_what_a_worker_died_of_hours_ago_is_not_why_the_run_failed() -> None:
    world = World()
    world.prepared()
    world.running()
    died = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": world.now.strftime("%Y-%m-%dT%H:%M:%SZ")}
    worker = next(pod for pod in world.find("Pod") if pod["metadata"]["labels"].get("ray.io/node-type") == "worker")
    worker["status"]["containerStatuses"][0]["lastState"] = {"terminated": died}
    world.settle()
    assert [attempt.reason for attempt in world.status.attempts or []] == ["OutOfMemory"]
    world.pass_time(hours=9)
    world.say(STEP)
    world.settle()
    assert [attempt.reason for attempt in world.status.attempts or []] == [None]
    world.ray("FAILED", "Failed", reason="AppFailed", message="Job entrypoint command failed with exit code 1")
    world.settle()
    assert [attempt.reason for attempt in world.status.attempts or []] == ["Internal"]


def test_a_measured_loss_with_many_digits_is_told_once() -> None:
    world = World()
    world.prepared()
    world.running()
    world.say(STEP)
    world.say(EvaluationDone(step=9, loss=2.0539832738950463, base_loss=2.5))
    world.settle()
    told = world.status.progress
    world.pass_time(minutes=1)
    world.settle()
    assert told and world.status.progress == told, "else a run without a new step would look alive"


def test_kopf_is_patient_and_lets_go_of_objects_soon() -> None:
    pauses = iter(Patient())
    assert sum(next(pauses) for _ in range(1000)) > 3600
    assert 0 < IDLE_SECONDS < 1, "with 0 kopf handles no event at all"
