"""One pass over a job: look, decide, write the status, then act."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cloister_api.status import Phase
from cloister_operator.cluster import Cluster, ClusterError
from cloister_operator.decide.actions import Action, Apply, Create, Delete, Event
from cloister_operator.decide.audit import audit_entries
from cloister_operator.decide.core import decide
from cloister_operator.decide.namespace import unneeded_policy
from cloister_operator.decide.patch import merge_patch
from cloister_operator.logs import FIELDS
from cloister_operator.names import DENY_POLICY, JOB_LABEL, ROLE_LABEL, Role, run_file_name
from cloister_operator.observe import reading
from cloister_operator.observe.children import Objects
from cloister_operator.observe.observation import UnreadableStatusError, is_own, observe
from cloister_operator.render.ray_job import SUBMITTER_CONTAINER
from cloister_operator.settings import Settings
from cloister_operator.store import Key, Object, Store

FINAL = ("Complete", "Failed")
PROGRESS_SECONDS = 15.0
"""How often the submitter's log is read while a run trains."""
PODS_LEFT_SECONDS = 10.0
log = logging.getLogger(__name__)


class StaleError(Exception):
    """The job changed since it was looked at."""


class Reconciler:
    """Brings one job after the other closer to what is asked for."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        settings: Settings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster, self._store, self._settings, self._clock = cluster, store, settings, clock
        self.ray_installed = True
        self._log_read: dict[Key, dict[str, tuple[datetime, str]]] = {}
        self._submitters: dict[Key, dict[str, Object]] = {}
        self._refused: dict[Key, dict[str, str]] = {}
        self._unreadable: dict[Key, str] = {}

    async def __call__(self, key: Key) -> float | None:
        """Look at a job once. Returns after how many seconds to look again."""
        jobs = self._store.of("FineTuneJob", key)
        if not jobs:
            for known in (self._refused, self._log_read, self._submitters, self._unreadable):
                known.pop(key, None)
            self._store.looked_at(key, self._store.departed(key))
            return await self._leave(key[0])
        job = max(jobs, key=reading.created)
        if not reading.deleting(job) and reading.text(job, "status", "phase") not in FINAL:
            await self._know_foundation(job)
        departed = self._store.departed(key)
        if not self.ray_installed:
            self.ray_installed = await self._cluster.list("RayJob", key[0]) is not None
        try:
            seen = observe(await self._objects(key, job, departed), self._settings, self._clock())
        except UnreadableStatusError as error:
            version = reading.text(job, "metadata", "resourceVersion")
            if self._unreadable.get(key) != version:
                self._unreadable[key] = version
                await self._tell(job, Event("Warning", "Internal", f"The job is left alone: {error}."))
            return None
        decision = decide(seen)
        if decision.status != seen.status:
            patch = merge_patch(dict(reading.part(job, "status")), decision.status.to_api())
            job = await self._write_status(job, patch)
            for entry in audit_entries(seen.job, seen.status, decision.status):
                log.info("%s %s/%s", entry["what"], *key, extra={FIELDS: entry})
        self._store.looked_at(key, departed)
        for event in decision.events:
            await self._tell(job, event)
        for action in decision.actions:
            await self._act(job, action)
        waits = [(decision.again_at - seen.now).total_seconds()] if decision.again_at else []
        if decision.status.phase in (Phase.QUEUED, Phase.TRAINING) and seen.runs:
            waits.append(PROGRESS_SECONDS)
        return max(0.5, min(waits)) if waits else None

    async def _objects(self, key: Key, job: Object, departed: list[Object]) -> Objects:
        store = self._store
        ray_jobs, jobs, pods = store.of("RayJob", key), store.of("Job", key), [*store.of("Pod", key), *departed]
        clusters, namespace, logs, events = store.of("RayCluster", key), key[0], {}, []
        if reading.text(job, "status", "phase") not in FINAL:  # an ended job's evidence is in its status
            runs = reading.controlled_by(ray_jobs, reading.uid(job))
            jobs += await self._submitter_jobs(key, runs, pods)
            logs = await self._logs(key, runs, jobs, pods)
            events = await self._events(namespace, [*jobs, *clusters], pods)
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
            other_jobs=[] if accepted else store.all("FineTuneJob"),
            ray_installed=self.ray_installed,
            refused=self._refused.get(key, {}),
        )

    async def _know_foundation(self, job: Object) -> None:
        """Look at what stands under the names of the job's ConfigMap and policies, until it is what the job made."""
        namespace, name = reading.text(job, "metadata", "namespace"), reading.name(job)
        named = (("ConfigMap", run_file_name(name)), ("NetworkPolicy", name), ("NetworkPolicy", DENY_POLICY))
        for kind, each in named:
            key = (namespace, "" if each == DENY_POLICY else name)
            known = [found for found in self._store.of(kind, key) if reading.name(found) == each]
            if any(is_own(found, reading.uid(job)) for found in known):
                continue
            for found in known:
                self._store.drop(kind, found)
            live = await self._cluster.get(kind, namespace, each)
            if live is not None:
                self._remember(kind, live, key)

    def _remember(self, kind: str, found: Object, key: Key) -> None:
        """Put an object where its name is looked for, even if its labels point elsewhere."""
        self._store.put(kind, found)
        if self._store.key(kind, found) != key:
            self._store.file(kind, found, key)

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

    async def _events(self, namespace: str, owners: list[Object], pods: list[Object]) -> list[Object]:
        """Warning Events about what has no pod, or a pod that does not start."""
        about = [found for found in owners if _has_no_pod_yet(found, pods)]
        about += [pod for pod in pods if reading.text(pod, "status", "phase") == "Pending"]
        found: list[Object] = []
        for each in about:
            selector = f"involvedObject.uid={reading.uid(each)},type=Warning"
            listing = await self._cluster.list("Event", namespace, field_selector=selector)
            found += listing.items if listing else []
        return found

    async def _logs(self, key: Key, runs: list[Object], jobs: list[Object], pods: list[Object]) -> dict[str, str]:
        """Ends of the submitters' logs, each read again when it is old or the run has ended.

        A log that cannot be read, because its node is away, says what it said before: nothing else is to wait for it.
        """
        ended = any(reading.text(each, "status", "jobDeploymentStatus") in FINAL for each in runs)
        submitters = [job for run in runs for job in reading.controlled_by(jobs, reading.uid(run))]
        read, now = self._log_read.get(key, {}), self._clock()
        newest: dict[str, tuple[datetime, str]] = {}
        for pod in (pod for job in submitters for pod in reading.controlled_by(pods, reading.uid(job))):
            known = read.get(reading.uid(pod))
            if known is None or ended or (now - known[0]).total_seconds() >= PROGRESS_SECONDS - 1:
                known = now, await self._log(key[0], reading.name(pod), known[1] if known else "")
            newest[reading.uid(pod)] = known
        self._log_read[key] = newest
        return {uid: text for uid, (_, text) in newest.items()}

    async def _log(self, namespace: str, pod: str, before: str) -> str:
        try:
            return await self._cluster.log(namespace, pod, SUBMITTER_CONTAINER) or before
        except ClusterError as error:
            log.warning("the log of pod %s/%s cannot be read: %s", namespace, pod, error)
            return before

    async def _write_status(self, job: Object, patch: dict[str, Any]) -> Object:
        try:
            written = await self._cluster.patch_status("FineTuneJob", dict(job), patch)
        except ClusterError as error:
            if error.conflict or error.gone:
                await self._refresh(job)
                raise StaleError("the job changed while it was looked at") from None
            raise
        self._store.put("FineTuneJob", written)
        return written

    async def _refresh(self, job: Object) -> Object | None:
        namespace, name = reading.text(job, "metadata", "namespace"), reading.name(job)
        live = await self._cluster.get("FineTuneJob", namespace, name)
        if live is None or reading.uid(live) != reading.uid(job):
            self._store.drop("FineTuneJob", job)
        if live is not None:
            self._store.put("FineTuneJob", live)
        return live

    async def _act(self, job: Object, action: Action) -> None:
        namespace = reading.text(job, "metadata", "namespace")
        if isinstance(action, Delete):
            await self._cluster.delete(action.kind, namespace, action.name, action.uid)
            return
        live = await self._refresh(job)
        version = reading.text(job, "metadata", "resourceVersion")
        if live is None or reading.text(live, "metadata", "resourceVersion") != version or reading.deleting(live):
            raise StaleError("the job changed before its child was made")
        kind = action.object["kind"]
        if isinstance(action, Apply):
            self._store.put(kind, await self._cluster.apply(action.object))
        elif isinstance(action, Create):
            await self._create(kind, (namespace, reading.name(job)), action)

    async def _create(self, kind: str, key: Key, action: Create) -> None:
        name = action.object["metadata"]["name"]
        try:
            self._store.put(kind, await self._cluster.create(action.object))
            self._refused.pop(key, None)
        except ClusterError as error:
            if error.gone and kind == "RayJob":
                self.ray_installed = False
                return
            if error.refused:
                self._refused.setdefault(key, {})[name] = str(error)
            if not error.conflict:
                raise
            found = await self._cluster.get(kind, key[0], name)
            if found is not None:
                self._remember(kind, found, self._store.key(kind, action.object))
            raise StaleError(f"{kind} {name} is there already") from None

    async def _leave(self, namespace: str) -> float | None:
        """A job is gone: so goes the namespace's policy, once nothing needs it."""
        if self._jobs_in(namespace):
            return None
        policy = await self._cluster.get("NetworkPolicy", namespace, DENY_POLICY)
        pods = await self._cluster.list("Pod", namespace, label_selector=JOB_LABEL)
        if policy is None or pods is None:
            return None
        jobs = self._jobs_in(namespace)  # one may have come meanwhile
        if action := unneeded_policy(jobs, pods.items, [policy]):
            self._store.drop("NetworkPolicy", policy)
            await self._cluster.delete(action.kind, namespace, action.name, action.uid)
        return None if action or jobs else PODS_LEFT_SECONDS

    def _jobs_in(self, namespace: str) -> list[Object]:
        jobs = self._store.all("FineTuneJob")
        return [found for found in jobs if reading.text(found, "metadata", "namespace") == namespace]

    async def _tell(self, job: Object, event: Event) -> None:
        """A Kubernetes Event; that it cannot be told stops nothing."""
        now = self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = reading.part(job, "metadata")
        reference = {
            "kind": "FineTuneJob",
            "apiVersion": "cloister.dev/v1alpha1",
            **{key: metadata[key] for key in ("name", "namespace", "uid")},
        }
        body = {
            "kind": "Event",
            "apiVersion": "v1",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": reference,
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": "cloister-operator"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._cluster.create(body)
        except ClusterError as error:
            log.warning("an Event was not told: %s", error)


def _has_no_pod_yet(found: Object, pods: list[Object]) -> bool:
    ended = reading.holds(found, "Complete") or reading.holds(found, "Failed")
    waits = ended or reading.flag(found, "spec", "suspend") or reading.deleting(found)
    return not waits and not reading.controlled_by(pods, reading.uid(found))
