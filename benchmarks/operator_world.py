"""Everybody around the operator in a large cluster: who starts pods, who trains, and who looks on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import urllib3

from cloister_api.events import Progress, format_event
from cluster.control_plane.api import Api, ApiError
from cluster.control_plane.plane import ControlPlane
from cluster.edges.kubelet import INTERVAL_S, Kubelet
from cluster.edges.pod_status import Ended, Pod, Running, State, role_of
from support.operator_values import PREPARED, PUBLISHED

WATCH_SECONDS = 3
"""How long one watch lasts: an end is noticed between two of them."""
TELL_SECONDS = 10.0
"""How often a training run tells of a step."""
TOTAL_STEPS = 1000

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a job."""


def succeeded(result: Object) -> Ended:
    """A step's pod that did its work."""
    return Ended(0, json.dumps({"version": 1, "outcome": "Succeeded", "result": result}))


STEP_ENDS = {"prepare": succeeded(PREPARED), "publish": succeeded(PUBLISHED)}


class Follower(Api):
    """Calls `tell(event, object)` for every object below a path and for every change, in a thread of its own."""

    def __init__(self, plane: ControlPlane, path: str, tell: Callable[[str, Object], None]) -> None:
        super().__init__(plane.kubeconfig)
        self._path, self._tell = path, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                listing = self.get(self._path)
                for found in listing["items"]:
                    self._tell("ADDED", found)
                self._follow(listing["metadata"]["resourceVersion"])
            except (ApiError, urllib3.exceptions.HTTPError):
                self._ended.wait(INTERVAL_S)  # the API server is away, or makes the kind ready

    def _follow(self, version: str) -> None:
        """Tell changes until the end, or until the server has forgotten the version."""
        while not self._ended.is_set():
            for event in self._events(version):
                if event.get("type", "ERROR") == "ERROR":
                    return
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._tell(event["type"], event["object"])

    def _events(self, version: str) -> Iterator[Object]:
        query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}"
        url = f"{self.server}{self._path}{'&' if '?' in self._path else '?'}{query}"
        answer = self._pool.request("GET", url, headers=self._headers, preload_content=False, timeout=30.0)
        try:
            yield from map(json.loads, answer)
        finally:
            answer.release_conn()


class Onlooker:
    """Sees when each job got its first child, and its phase."""

    def __init__(self, plane: ControlPlane) -> None:
        self.first_child: dict[Key, float] = {}
        """time.monotonic() at which the Job of prepare was seen."""
        self.phases: dict[Key, str] = {}
        self._jobs = Follower(plane, "/apis/cloister.dev/v1alpha1/finetunejobs", self._see_job)
        self._children = Follower(plane, "/apis/batch/v1/jobs", self._see_child)

    def __enter__(self) -> Self:
        self._jobs.__enter__()
        self._children.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._children.__exit__(kind, value, traceback)
        self._jobs.__exit__(kind, value, traceback)

    def _see_job(self, event: str, job: Object) -> None:
        if event != "DELETED":
            self.phases[_key(job)] = job.get("status", {}).get("phase", "")

    def _see_child(self, event: str, child: Object) -> None:
        namespace, name = _key(child)
        if event == "ADDED" and name.endswith("-prepare"):
            self.first_child.setdefault((namespace, name.removesuffix("-prepare")), time.monotonic())


class PacedKubelet(Kubelet):
    """A kubelet for thousands of pods: it is told of them by a watch, and every step's pod succeeds after a while."""

    def __init__(self, plane: ControlPlane, step_seconds: float) -> None:
        super().__init__(plane)
        self._step_seconds = step_seconds
        self._known: dict[str, Pod] = {}
        self._since: dict[str, float] = {}

    def pods(self, role: str) -> list[Pod]:
        """The pods of one role that are there."""
        return [pod for pod in list(self._known.values()) if role_of(pod) == role]

    def _run(self) -> None:
        with Follower(self._plane, "/api/v1/pods?fieldSelector=spec.nodeName!=", self._see):
            while not self._ended.wait(INTERVAL_S):
                try:
                    for pod in list(self._known.values()):
                        self._tend(pod)
                except urllib3.exceptions.HTTPError:
                    continue
                except BaseException as error:
                    self._failure = error
                    raise

    def _see(self, event: str, pod: Pod) -> None:
        uid = pod["metadata"]["uid"]
        if event == "DELETED":
            self._known.pop(uid, None)
        else:
            self._known[uid] = pod

    def _ordered(self, pod: Pod) -> State:
        end = STEP_ENDS.get(role_of(pod))
        if end is None:
            return super()._ordered(pod)
        since = self._since.setdefault(pod["metadata"]["uid"], time.monotonic())
        return end if time.monotonic() - since >= self._step_seconds else Running()


class Trainers:
    """What the drivers of all runs write to their submitters' logs: a step every few seconds."""

    def __init__(self, kubelet: PacedKubelet, uids: dict[Key, str]) -> None:
        self._kubelet, self._uids = kubelet, uids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        step = 0
        while not self._ended.wait(TELL_SECONDS):
            step += 1
            for pod in self._kubelet.pods("submitter"):
                namespace, job = pod["metadata"]["namespace"], pod["metadata"]["labels"]["cloister.dev/job"]
                line = format_event(self._uids[namespace, job], 1, datetime.now(UTC), _progress(step))
                self._kubelet.say(namespace, pod["metadata"]["name"], line + "\n")


def _progress(step: int) -> Progress:
    return Progress(
        step=step,
        total_steps=TOTAL_STEPS,
        epoch=3 * step / TOTAL_STEPS,
        loss=1.5 / step,
        learning_rate=1e-4,
        tokens_per_second=9000,
        eta_seconds=int((TOTAL_STEPS - step) * TELL_SECONDS),
    )


def _key(found: Object) -> Key:
    return found["metadata"]["namespace"], found["metadata"]["name"]
