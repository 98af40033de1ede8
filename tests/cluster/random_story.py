"""One job among people, Ray, kubelets and strangers who do something at random; nobody waits for anybody."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import urllib3

from cloister_api.events import CheckpointSaved
from cluster.control_plane.api import ApiError, Object
from cluster.edges.pod_status import Ended, Gone, Running, role_of
from cluster.jobs import jobs_path
from cluster.operator_jobs import PATHS, Scene, failed, succeeded
from cluster.ray_jobs import create_batch_job, create_ray_job
from support.operator_values import PREPARED, PUBLISHED

ATTEMPTS = range(1, 9)
AWAY = (ApiError, OSError, urllib3.exceptions.HTTPError)
"""The API server restarts, or refuses what another happening made senseless."""
STRANGE = "tests.cloister.dev/stranger"


class RandomStory:
    """What happens is chosen by the seed; when, by the clock."""

    def __init__(self, seed: int, scene: Scene) -> None:
        self.seed, self.scene = seed, scene
        self.told: list[str] = []
        self._random = random.Random(seed)
        self._made = self._deleted = False
        self.strangers: list[str] = []
        """Paths of objects of somebody else, some of which have names that the job's children are to have."""

    def plant_strangers(self) -> None:
        """Before the job comes: objects of another owner, in some stories with the name of a child."""
        name = self._random.choice(["neighbour", "neighbour", "neighbour", self.scene.name])
        namespace, api = self.scene.namespace, self.scene.plane.api
        kind = self._random.choice(["configmaps", "networkpolicies", "jobs", "rayjobs"])
        if kind == "configmaps":
            made = f"{name}-run"
            api.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": made}, "data": {"a": "b"}})
        elif kind == "networkpolicies":
            made, spec = name, {"podSelector": {"matchLabels": {"a": "b"}}}
            path = f"{PATHS[kind]}/namespaces/{namespace}/networkpolicies"
            api.create(path, {"metadata": {"name": made}, "spec": spec})
        elif kind == "jobs":
            made = f"{name}-publish"
            create_batch_job(self.scene.plane, namespace, made, suspend=True)
        else:
            made = f"{name}-2"
            create_ray_job(self.scene.plane, namespace, made, managed_by="kueue.x-k8s.io/multikueue")
        self.strangers.append(f"{PATHS[kind]}/namespaces/{namespace}/{kind}/{made}")

    def happen(self) -> None:
        """One thing happens."""
        happening = self._random.choice(HAPPENINGS)
        if not self._made:
            happening = RandomStory.job_is_made
        self.told.append(happening.__name__)
        try:
            happening(self)
        except AWAY as error:
            self.told[-1] += f" ({type(error).__name__})"

    # people

    def job_is_made(self) -> None:
        """Once in a story; in most of them it soon finds what it needs to train."""
        if self._random.random() < 0.6:
            self.scene.prepare_succeeds()
            self._ray("RUNNING")
        self.scene.apply({"spec.backoffLimit": self._random.choice([0, 1, 3])})
        self._made = True

    def suspend_or_resume(self) -> None:
        """The owner changes his mind."""
        if not self._deleted:
            self.scene.edit(suspend=self._random.random() < 0.4)

    def hold_or_release(self) -> None:
        """The owner wants to see the plan first, or has seen it."""
        if not self._deleted:
            self.scene.edit(hold=self._random.choice(["None", "BeforeTraining"]))

    def job_is_deleted(self) -> None:
        """The owner gives up; seldom, as it ends the story."""
        if not self._deleted and self._random.random() < 0.15:
            self.scene.delete()
            self._deleted = True

    def somebody_deletes_a_child(self) -> None:
        """An administrator clears up what is not his."""
        plural = self._random.choice(["jobs", "rayjobs", "pods", "configmaps", "networkpolicies"])
        own = [each for each in self.scene.items(plural) if self._is_child(each)]
        if own:
            name = self._random.choice(own)["metadata"]["name"]
            path = f"{PATHS[plural]}/namespaces/{self.scene.namespace}/{plural}/{name}"
            self.scene.plane.api.delete(path, propagationPolicy=self._random.choice(["Background", "Foreground"]))

    # kubelets

    def step_ends(self) -> None:
        """prepare or publish ends well, ends badly, or works again."""
        role, result = self._random.choice([("prepare", PREPARED), ("publish", PUBLISHED)])
        ends: list[Any] = [succeeded(result)] * 4
        ends += [failed("StorageUnavailable"), failed("EgressUnproven"), Ended(1), Ended(0, "{"), Running()]
        self.scene.step_ends(role, self._random.choice(ends))

    def pod_fails(self) -> None:
        """A pod of the run is evicted or runs out of memory."""
        pods = [pod for pod in self.scene.items("pods") if role_of(pod) in ("head", "worker", "submitter")]
        if pods:
            pod = self._random.choice(pods)["metadata"]["name"]
            state = self._random.choice([Gone("Evicted", "low on memory"), Ended(137, reason="OOMKilled")])
            self.scene.kubelet.order(state, self.scene.namespace, pod=pod)

    def submitters_end(self) -> None:
        """The pods that hand runs to Ray end, or go on."""
        state = self._random.choice([Ended(0), Running(), Running()])
        self.scene.step_ends("submitter", state)

    # Ray

    def ray_runs(self) -> None:
        """Ray makes steps."""
        self._ray("RUNNING")

    def ray_ends(self) -> None:
        """Ray ends well or badly, and the submitter with it."""
        self._ray(self._random.choice(["SUCCEEDED", "SUCCEEDED", "FAILED", "STOPPED"]))
        self.scene.step_ends("submitter", Ended(0))

    def ray_forgets(self) -> None:
        """The head knows nothing of the job."""
        for attempt in ATTEMPTS:
            self.scene.dashboard.forget(self.scene.namespace, f"{self.scene.name}-{attempt}")

    def ray_saves(self) -> None:
        """The driver tells of a checkpoint."""
        step = self._random.randrange(1, 120)
        uri = f"s3://cloister-runs/{self.scene.namespace}/u/checkpoints/step-{step:06d}"
        attempt = self.scene.status.get("attempt", 1)
        line = self.scene.line(CheckpointSaved(step=step, uri=uri), attempt)
        for pod in self.scene.pods("submitter"):
            self.scene.kubelet.say(self.scene.namespace, pod["metadata"]["name"], f"{line}\n")

    def _ray(self, status: str) -> None:
        for attempt in ATTEMPTS:
            self.scene.ray_says(status, "", attempt=attempt)

    def _is_child(self, found: Object) -> bool:
        metadata = found["metadata"]
        strange = tuple(path.rpartition("/")[2] for path in self.strangers)
        return "ownerReferences" in metadata and not metadata["name"].startswith(strange)

    @property
    def over(self) -> bool:
        """Whether the job was deleted, or ended."""
        return self._deleted or self.phase() in ("Complete", "Failed")

    def phase(self) -> str:
        """The job's phase now; empty where there is none."""
        try:
            job: Object = self.scene.plane.api.get(jobs_path(self.scene.namespace, self.scene.name))
        except AWAY:
            return ""
        found: str = job.get("status", {}).get("phase", "")
        return found


HAPPENINGS: list[Callable[[RandomStory], None]] = [
    *[RandomStory.step_ends] * 5,
    *[RandomStory.ray_runs] * 3,
    *[RandomStory.suspend_or_resume] * 2,
    RandomStory.ray_ends,
    RandomStory.ray_saves,
    RandomStory.ray_forgets,
    RandomStory.submitters_end,
    *[RandomStory.hold_or_release] * 2,
    RandomStory.pod_fails,
    RandomStory.somebody_deletes_a_child,
    RandomStory.job_is_deleted,
]
