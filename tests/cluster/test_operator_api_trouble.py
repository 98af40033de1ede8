"""An API server that answers with errors, that is changed by others, that is away: the operator goes on by itself.

The operator reaches it through a proxy, so that the rest of the cluster goes on meanwhile.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from cluster.control_plane.access import wait_until
from cluster.control_plane.api import Object
from cluster.edges.api_calls import Call, Fault, Precede, Refuse
from cluster.edges.api_proxy import ApiProxy
from cluster.jobs import jobs_path
from cluster.operator_jobs import Scene
from cluster.operator_stories import assert_complete_at_the_first_attempt, goes_by_itself

pytest_plugins = ["cluster.operator_fixtures"]

ANSWERS = (Refuse(429, retry_after_s=1), Refuse(500), Refuse(503), Refuse(503, retry_after_s=1), Refuse(504))
KINDS = 6
"""Kinds of which a watch is open at any time."""
LONG_S = 90
"""Time for a job's whole way, with the operator's longest pause after an outage of some seconds."""


@pytest.fixture(scope="module")
def through(proxy: ApiProxy) -> Object:
    return proxy.entry


def lasts(seconds: float) -> None:
    """The trouble lasts so long."""
    threading.Event().wait(seconds)


def trains_again(status: Object) -> bool:
    return (status.get("phase"), status.get("attempt")) == ("Training", 2)


def lines_about(scene: Scene) -> list[Object]:
    """Lines of the log that complain about something and name the job."""
    name = f"{scene.namespace}/{scene.name}"
    return [line for line in scene.operator.log_lines() if line["level"] == "warning" and name in line["message"]]


@pytest.mark.parametrize("seconds", [8, pytest.param(70, marks=pytest.mark.soak)])
def test_errors_on_every_call_for_a_while_cost_nothing_but_time(
    scene: Scene, new_scene: Callable[[], Scene], proxy: ApiProxy, seconds: int
) -> None:
    fresh, answers, everything = new_scene(), itertools.cycle(ANSWERS), threading.Event()
    scene.training()
    before = scene.operator.pid

    def rule(call: Call) -> Fault | None:
        return None if call.verb == "watch" and not everything.is_set() else next(answers)

    with proxy.ruled(rule):
        scene.publish_succeeds()
        scene.ray_ends("SUCCEEDED")
        goes_by_itself(fresh)
        wait_until(lambda: lines_about(scene) and lines_about(fresh), "looks at the jobs that fail", 30)
        everything.set()
        proxy.cut_watches()
        lasts(seconds)
    for each in (scene, fresh):
        each.wait_until(lambda status: status.get("phase") == "Complete", "the end", LONG_S)
        assert_complete_at_the_first_attempt(each)
    assert scene.operator.pid == before, "it needed no new start"
    assert (scene.operator.sample("cloister_reconcile_errors_total", reason="ClusterError") or 0) > 0
    for each in (scene, fresh):
        keys = {(line.get("namespace"), line.get("name")) for line in lines_about(each)}
        assert keys == {(each.namespace, each.name)}, "a line about a job has its key"


def test_an_operator_that_starts_into_errors_waits_for_them_to_end(scene: Scene, proxy: ApiProxy) -> None:
    answers = itertools.cycle(ANSWERS)
    scene.operator.kill()
    goes_by_itself(scene)
    with proxy.ruled(lambda _: next(answers)):
        scene.operator.start()
        asked = len(proxy.calls)
        wait_until(lambda: len(proxy.calls) > asked + 3, "some calls that are refused", 30)
    scene.wait_until(lambda status: status.get("phase") == "Complete", "the end", LONG_S)
    assert_complete_at_the_first_attempt(scene)


def test_a_job_that_somebody_changes_before_every_write_of_its_status_ends_where_others_end(
    scene: Scene, proxy: ApiProxy
) -> None:
    """Each status write but the repeated one finds another version of the job than the one that was looked at."""
    turns, touched = itertools.count(), []

    def touch() -> None:
        touched.append(str(len(touched)))
        change = {"metadata": {"annotations": {"tests.cloister.dev/touched": touched[-1]}}}
        scene.plane.api.patch(jobs_path(scene.namespace, scene.name), change)

    def rule(call: Call) -> Fault | None:
        if (call.verb, call.part, call.namespace) != ("patch", "status", scene.namespace):
            return None
        return Precede(touch) if next(turns) % 2 == 0 else None

    with proxy.ruled(rule):
        goes_by_itself(scene)
        assert_complete_at_the_first_attempt(scene)
    assert len(touched) >= 4


@pytest.mark.parametrize("seconds", [20, pytest.param(60, marks=pytest.mark.soak)])
def test_what_happened_while_the_api_server_was_out_of_reach_is_seen(
    scene: Scene, new_scene: Callable[[], Scene], proxy: ApiProxy, seconds: int
) -> None:
    deleted, suspended, robbed, fresh = (new_scene() for _ in range(4))
    for each in (scene, robbed):
        each.training()
    for each in (deleted, suspended):
        each.preparing()
    before, refused = scene.operator.pid, proxy.done["refused"]
    with proxy.away():
        ends = time.monotonic() + seconds
        scene.publish_succeeds()
        scene.ray_ends("SUCCEEDED")
        deleted.delete()
        suspended.edit(suspend=True)
        robbed.ray_says("RUNNING", attempt=2)
        robbed.plane.api.delete(f"/apis/ray.io/v1/namespaces/{robbed.namespace}/rayjobs/contracts-1")
        goes_by_itself(fresh)
        lasts(ends - time.monotonic())
    assert proxy.done["refused"] > refused
    for each in (scene, fresh):
        each.wait_until(lambda status: status.get("phase") == "Complete", "the end", LONG_S)
        assert_complete_at_the_first_attempt(each)
    suspended.wait_for("Suspended", "Suspended")
    status = robbed.wait_until(trains_again, "the second attempt", LONG_S)
    assert [attempt.get("reason") for attempt in status["attempts"]] == ["WorkersLost", None]
    deleted.wait_until_gone()
    assert scene.operator.pid == before, "it needed no new start"


def test_deletions_between_watches_that_expired_are_noticed(
    scene: Scene, new_scene: Callable[[], Scene], proxy: ApiProxy
) -> None:
    """What the operator knows of a job that was made anew is no ghost in the life of the next one."""
    deleted, prepared, anew = new_scene(), new_scene(), new_scene()
    for each in (scene, deleted, anew):
        each.training()
    prepared.preparing()
    uid, old = deleted.job["metadata"]["uid"], anew.job["metadata"]["uid"]
    (job,) = prepared.items("jobs")
    before = proxy.done.copy()
    with proxy.gap_in_watches():
        scene.plane.api.delete(f"/apis/ray.io/v1/namespaces/{scene.namespace}/rayjobs/contracts-1")
        jobs = f"/apis/batch/v1/namespaces/{prepared.namespace}/jobs"
        scene.plane.api.delete(f"{jobs}/contracts-prepare", propagationPolicy="Foreground")
        for each in (deleted, anew):
            each.delete()
        for each in (deleted, anew):
            wait_until(lambda each=each: not each.exists and not each.items("pods"), "the job's end", 60)  # type: ignore[misc]
        goes_by_itself(anew)
        wait_until(lambda: not scene.items("rayjobs") and not prepared.items("jobs"), "the children's end", 60)
    wait_until(lambda: proxy.done["expired"] >= before["expired"] + KINDS, "the ends of all watches")
    assert proxy.done["kept back"] > before["kept back"]
    scene.ray_says("RUNNING", attempt=2)
    status = scene.wait_until(trains_again, "the second attempt", LONG_S)
    assert [attempt.get("reason") for attempt in status["attempts"]] == ["WorkersLost", None]
    prepared.running("prepare")
    (again,) = prepared.items("jobs")
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    assert_complete_at_the_first_attempt(anew)
    assert anew.job["metadata"]["uid"] != old
    deleted.wait_until_gone()
    told = [line for line in scene.operator.log_lines() if line.get("what") == "deleted" and line.get("uid") == uid]
    assert len(told) == 1, "a deletion is audited, and once"
