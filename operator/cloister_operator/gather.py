"""What a look at a job needs: from the store, and read from the cluster where no watch shows it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import Any

from cloister_operator.cluster import Cluster
from cloister_operator.names import DENY_POLICY, ROLE_LABEL, Role, Step, ray_job_name, run_file_name, step_name
from cloister_operator.observe import reading
from cloister_operator.observe.children import Objects
from cloister_operator.observe.observation import is_own
from cloister_operator.recent import RecentEvents, RecentLogs
from cloister_operator.store import Key, Object, Store

FINAL = frozenset({"Complete", "Failed"})
CONTROLLER_UID_LABEL = "batch.kubernetes.io/controller-uid"


class Gatherer:
    """Gathers the objects that decisions are made from. What it remembers only saves calls."""

    def __init__(self, cluster: Cluster, store: Store, seconds: Callable[[], float] = monotonic) -> None:
        self._cluster, self._store = cluster, store
        self._events, self._logs = RecentEvents(cluster, seconds), RecentLogs(cluster, seconds)
        self._submitters: dict[Key, dict[str, Object]] = {}

    async def gather(self, key: Key, job: Object, departed: list[Object], now: datetime, **known: Any) -> Objects:
        """Everything about a job. `departed`: failed pods that are gone; `known`: further fields of Objects.

        Raises ClusterError.
        """
        store, namespace = self._store, key[0]
        if is_over(job):
            self.forget(key)
        else:
            await self._look_at_names(job)
            await self._look_for_run(key, job)
            await self._look_for_last_words(key, job)
        ray_jobs, jobs, clusters = store.of("RayJob", key), store.of("Job", key), store.of("RayCluster", key)
        pods = [*store.of("Pod", key), *departed]
        logs: dict[str, str] = {}
        events: list[Object] = []
        if not is_over(job):
            runs = reading.controlled_by(ray_jobs, reading.uid(job))
            jobs += await self._submitter_jobs(key, runs, pods)
            if reading.text(job, "status", "phase") != "Publishing":
                logs = await self._logs.read(key, runs, jobs, pods)
            events = await self._events.read(key, [*jobs, *clusters], pods, now)
        owned = [reading.uid(found) for found in (*jobs, *ray_jobs)]
        return Objects(
            job=job,
            jobs=jobs,
            pods=pods,
            ray_jobs=ray_jobs,
            ray_clusters=clusters,
            workloads=[found for uid in owned for found in store.of("Workload", (namespace, uid))],
            config_maps=store.of("ConfigMap", key),
            network_policies=[*store.of("NetworkPolicy", key), *store.of("NetworkPolicy", (namespace, ""))],
            events=events,
            logs=logs,
            other_jobs=await self._other_jobs(job),
            **known,
        )

    def forget(self, key: Key) -> None:
        """Nothing more is to be learned of the job."""
        self._events.forget(key)
        self._logs.forget(key)
        self._submitters.pop(key, None)

    async def _look_at_names(self, job: Object) -> None:
        """Look again at what stands in the way of the job's ConfigMap and policies.

        Of a name that nothing is known of, the attempt to make the object tells whether it is taken.
        """
        namespace, name = reading.text(job, "metadata", "namespace"), reading.name(job)
        named = (("ConfigMap", run_file_name(name)), ("NetworkPolicy", name), ("NetworkPolicy", DENY_POLICY))
        for kind, each in named:
            key = (namespace, "" if each == DENY_POLICY else name)
            known = [found for found in self._store.of(kind, key) if reading.name(found) == each]
            if not known or any(is_own(found, reading.uid(job)) for found in known):
                continue
            since = self._store.moment
            live = await self._cluster.get(kind, namespace, each)
            if live is not None:
                self._store.found(kind, live, key, since)
            for found in known:
                if live is None or reading.uid(live) != reading.uid(found):
                    self._store.drop(kind, found)

    async def _look_for_run(self, key: Key, job: Object) -> None:
        """A watch tells that a RayJob is gone also when it only lost our label: read the open attempt's by name."""
        attempts = reading.parts(job, "status", "attempts")
        if not attempts or reading.text(attempts[-1], "end") or not reading.text(attempts[-1], "start"):
            return
        name = ray_job_name(key[1], reading.number(attempts[-1], "number") or 0)
        if any(reading.name(found) == name for found in self._store.of("RayJob", key)):
            return
        since = self._store.moment
        if live := await self._cluster.get("RayJob", key[0], name):
            self._store.found("RayJob", live, key, since)

    async def _look_for_last_words(self, key: Key, job: Object) -> None:
        """Where the newest pod of a step's Job ended otherwise than the Job, the watch of pods is behind: read them."""
        for step in reading.controlled_by(self._store.of("Job", key), reading.uid(job)):
            end = "Succeeded" if reading.holds(step, "Complete") else "Failed" if reading.holds(step, "Failed") else ""
            known = reading.name(step) == step_name(key[1], Step.PREPARE) and reading.holds(job, "Prepared")
            if not end or known:
                continue
            pods = reading.controlled_by(self._store.of("Pod", key), reading.uid(step))
            if pods and reading.text(max(pods, key=reading.created), "status", "phase") == end:
                continue
            since = self._store.moment
            selector = f"{CONTROLLER_UID_LABEL}={reading.uid(step)}"
            listing = await self._cluster.list("Pod", key[0], label_selector=selector)
            for pod in reading.controlled_by(listing.items if listing else [], reading.uid(step)):
                self._store.found("Pod", pod, key, since)

    async def _submitter_jobs(self, key: Key, ray_jobs: list[Object], pods: list[Object]) -> list[Object]:
        """KubeRay's submitter Jobs carry none of our labels, so no watch shows them: read by name, once for each."""
        known, found = self._submitters.get(key, {}), {}
        for ray_job in ray_jobs:
            owners = [reading.controller(pod) for pod in pods if reading.labels(pod).get(ROLE_LABEL) == Role.SUBMITTER]
            uids = {
                reading.text(owner, "uid") for owner in owners if reading.text(owner, "name") == reading.name(ray_job)
            }
            job = known.get(reading.uid(ray_job))
            there = bool(uids) or reading.text(ray_job, "status", "jobDeploymentStatus") == "Running"
            if there and (job is None or (uids and reading.uid(job) not in uids)):
                job = await self._cluster.get("Job", key[0], reading.name(ray_job))
            if job is not None:
                found[reading.uid(ray_job)] = job
        self._submitters[key] = found
        return list(found.values())

    async def _other_jobs(self, job: Object) -> list[Object]:
        """Jobs that want to publish to the same place, which are there now: one that is gone stands in nobody's way."""
        if reading.text(job, "status", "startTime"):
            return []
        there: list[Object] = []
        for other in self._store.jobs_with_output(reading.output(job)):
            if reading.uid(other) == reading.uid(job) or is_over(other):
                continue
            live = await self._cluster.get(
                "FineTuneJob", reading.text(other, "metadata", "namespace"), reading.name(other)
            )
            if live is None or reading.uid(live) != reading.uid(other):
                self._store.drop("FineTuneJob", other)
            else:
                there.append(live)
        return there


def is_over(job: Object) -> bool:
    """Whether nothing further is to be learned of a job: it ended, with the evidence in its status, or is to go."""
    return reading.deleting(job) or reading.text(job, "status", "phase") in FINAL
