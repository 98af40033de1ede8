"""A job that goes on with fewer workers: the status says so, and nothing else happens."""

from __future__ import annotations

from cloister_api.events import Progress
from support.operator_world import World

STEP = Progress(step=1, total_steps=99, epoch=0, loss=1, learning_rate=0, tokens_per_second=0, eta_seconds=0)


def test_status_says_that_steps_are_made_by_fewer_workers() -> None:
    world = World({"spec.distribution": {"workers": 4, "minWorkers": 2, "gpusPerWorker": 8}})
    world.prepared()
    world.running()
    world.say(STEP)
    world.settle()
    assert world.conditions()["Running"] == ("True", "Training")
    assert running_message(world) == ""

    made = list(world.made)
    (worker, *_) = [pod for pod in world.find("Pod") if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"]
    worker["status"] |= {"phase": "Pending", "conditions": [UNSCHEDULABLE], "containerStatuses": []}
    world.bump(worker)
    world.say(STEP.model_copy(update={"step": 2, "workers": 3}))
    status = world.settle()
    assert (status.phase, status.reason, status.attempt) == ("Training", None, 1)
    assert status.progress and status.progress.workers == 3
    assert world.conditions()["Running"] == ("True", "Training")
    assert running_message(world).startswith("Steps are made by 3 of 4 workers, and distribution.minWorkers is 2; ")
    assert world.made == made

    world.say(STEP.model_copy(update={"step": 2}))
    status = world.settle()
    assert status.progress and status.progress.workers is None
    assert running_message(world) == ""


def test_what_an_earlier_attempt_made_its_steps_with_is_not_said_of_the_next() -> None:
    world = World({"spec.distribution": {"workers": 4, "minWorkers": 2, "gpusPerWorker": 8}})
    world.prepared()
    world.running()
    world.say(STEP.model_copy(update={"workers": 3}))
    world.settle()
    world.ray("FAILED", "Failed")
    world.settle()
    world.pass_time(minutes=1)
    world.settle()
    world.running()
    status = world.settle()
    assert (status.phase, status.attempt) == ("Training", 2)
    assert status.progress and status.progress.workers == 3
    assert running_message(world) == ""


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes"}


def running_message(world: World) -> str:
    return next(found.message for found in world.status.conditions or [] if found.type == "Running")
