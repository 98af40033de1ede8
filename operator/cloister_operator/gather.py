"""What a look at a job needs: from the store, and read from the cluster where no watch shows it."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from cloister_operator.cluster import Cluster, ClusterError
from cloister_operator.names import DENY_POLICY, ROLE_LABEL, Role, run_file_name
from cloister_operator.observe import reading
from cloister_operator.observe.children import Objects
from cloister_operator.observe.observation import is_own
from cloister_operator.render.ray_job import SUBMITTER_CONTAINER
from cloister_operator.store import Key, Object, Store

FINAL = frozenset({"Complete", "Failed"})
PROGRESS_SECONDS = 15.0
"""How often the submitter's log is read while a run trains."""
EVENTS_PAUSE = timedelta(seconds=2)
"""How old an object is before Events about it are asked for, and how long they are not asked for again."""
log = logging.getLogger(__name__)


class Gatherer:
    """Gathers the objects that decisions are made from. What it remembers only saves calls."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster, self._store = cluster, store
        self._logs_read: dict[Key, dict[str, tuple[datetime, str]]] = {}
        self._events_read: dict[Key, dict[str, tuple[datetime, list[Object]]]] = {}
        self._submitters: dict[Key, dict[str, Object]] = {}

    async def gather(self, key: Key, job: Object, departed: list[Object], now: datetime, **known: Any) -> Objects:
        """Everything about a job. `departed`: failed pods that are gone; `known`: further fields of Objects.

        Raises ClusterError.
        """
        store, namespace = self._store, key[0]
        if not is_over(job):
            await self._know_foundation(job)
        ray_jobs, jobs, clusters = store.of("RayJob", key), store.of("Job", key), store.of("RayCluster", key)
        pods = [*store.of("Pod", key), *departed]
        logs: dict[str, str] = {}
        events: list[Object] = []
        if not is_over(job):
            runs = reading.controlled_by(ray_jobs, reading.uid(job))
            jobs += await self._submitter_jobs(key, runs, pods)
            logs = await self._logs(key, runs, jobs, pods, now)
            events = await self._events(key, [*jobs, *clusters], pods, now)
        owned = [reading.uid(found) for found in (*jobs, *ray_jobs)]
        accepted = bool(reading.text(job, "status", "startTime"))
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
            other_jobs=[] if accepted else store.jobs_with_output(reading.output(job)),
            **known,
        )

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._logs_read.pop(key, None)
        self._events_read.pop(key, None)
        self._submitters.pop(key, None)

    async def _know_foundation(self, job: Object) -> None:
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
            for found in known:
                self._store.drop(kind, found)
            live = await self._cluster.get(kind, namespace, each)
            if live is not None:
                self._store.put(kind, live)
                self._store.file(kind, live, key)  # even if its labels point elsewhere

    async def _submitter_jobs(self, key: Key, ray_jobs: list[Object], pods: list[Object]) -> list[Object]:
        """KubeRay's submitter Jobs carry none of our labels, so no watch shows them: read by name, once for each."""
        known, found = self._submitters.get(key, {}), {}
        for ray_job in ray_jobs:
            owners = [reading.controller(pod) for pod in pods if reading.labels(pod).get(ROLE_LABEL) == Role.SUBMITTER]
            uids = {
                reading.text(owner, "uid") for owner in owners if reading.text(owner, "name") == reading.name(ray_job)
            }
            job = known.get(reading.uid(ray_job))
            if uids and (job is None or reading.uid(job) not in uids):
                job = await self._cluster.get("Job", key[0], reading.name(ray_job))
            if job is not None:
                found[reading.uid(ray_job)] = job
        self._submitters[key] = found
        return list(found.values())

    async def _events(self, key: Key, owners: list[Object], pods: list[Object], now: datetime) -> list[Object]:
        """Warning Events about what has no pod, or a pod that does not start; none of what was made a moment ago."""
        about = [found for found in owners if _has_no_pod_yet(found, pods)]
        about += [pod for pod in pods if reading.text(pod, "status", "phase") == "Pending"]
        read = self._events_read.get(key, {})
        newest: dict[str, tuple[datetime, list[Object]]] = {}
        for each in about:
            uid = reading.uid(each)
            known = read.get(uid)
            if known is None and now - reading.created(each) < EVENTS_PAUSE:
                continue
            if known is None or now - known[0] >= EVENTS_PAUSE:
                selector = f"involvedObject.uid={uid},type=Warning"
                listing = await self._cluster.list("Event", key[0], field_selector=selector)
                known = now, list(listing.items) if listing else []
            newest[uid] = known
        self._events_read[key] = newest
        return [event for _, events in newest.values() for event in events]

    async def _logs(
        self, key: Key, runs: list[Object], jobs: list[Object], pods: list[Object], now: datetime
    ) -> dict[str, str]:
        """Ends of the submitters' logs, each read again when it is old or the run has ended.

        A log that cannot be read, because its node is away, says what it said before: nothing else is to wait for it.
        """
        ended = any(reading.text(each, "status", "jobDeploymentStatus") in FINAL for each in runs)
        submitters = [job for run in runs for job in reading.controlled_by(jobs, reading.uid(run))]
        read = self._logs_read.get(key, {})
        newest: dict[str, tuple[datetime, str]] = {}
        for pod in (pod for job in submitters for pod in reading.controlled_by(pods, reading.uid(job))):
            known = read.get(reading.uid(pod))
            if known is None or ended or (now - known[0]).total_seconds() >= PROGRESS_SECONDS - 1:
                known = now, await self._log(key[0], reading.name(pod), known[1] if known else "")
            newest[reading.uid(pod)] = known
        self._logs_read[key] = newest
        return {uid: text for uid, (_, text) in newest.items()}

    async def _log(self, namespace: str, pod: str, before: str) -> str:
        try:
            return await self._cluster.log(namespace, pod, SUBMITTER_CONTAINER) or before
        except ClusterError as error:
            log.warning("the log of pod %s/%s cannot be read: %s", namespace, pod, error)
            return before


def is_over(job: Object) -> bool:
    """Whether nothing further is to be learned of a job: it ended, with the evidence in its status, or is to go."""
    return reading.deleting(job) or reading.text(job, "status", "phase") in FINAL


def _has_no_pod_yet(found: Object, pods: list[Object]) -> bool:
    ended = reading.holds(found, "Complete") or reading.holds(found, "Failed")
    waits = ended or reading.flag(found, "spec", "suspend") or reading.deleting(found)
    return not waits and not reading.controlled_by(pods, reading.uid(found))
