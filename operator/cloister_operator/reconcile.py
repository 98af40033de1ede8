"""One pass over a job: look, decide, write the status, then act."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from cloister_api.status import Phase
from cloister_operator.cluster import Cluster, ClusterError
from cloister_operator.decide.actions import Action, Delete, Event, Mend
from cloister_operator.decide.audit import audit_entries
from cloister_operator.decide.core import decide
from cloister_operator.decide.namespace import unneeded_policy
from cloister_operator.decide.patch import merge_patch
from cloister_operator.gather import Gatherer
from cloister_operator.logs import FIELDS, about_job
from cloister_operator.names import DENY_POLICY, JOB_LABEL
from cloister_operator.observe import reading
from cloister_operator.observe.observation import UnreadableStatusError, is_own, observe
from cloister_operator.recent import PROGRESS_SECONDS
from cloister_operator.settings import Settings
from cloister_operator.store import Key, Object, Store

SOONEST_SECONDS = 0.5
FOLLOW_UP_SECONDS = 2.0
"""After what the operator did itself, which no watch tells it as news. Children mostly change before."""
LIVE_SECONDS = 0.2
"""How long an answer of the API server about a job says that it is there and not being deleted."""
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
        self._gatherer = Gatherer(cluster, store)
        self._refused: dict[Key, dict[str, str]] = {}
        self._unreadable: dict[Key, str] = {}

    async def __call__(self, key: Key) -> float | None:
        """Look at a job once; a key without a name is its whole namespace. Returns when to look again, in seconds."""
        if not key[1]:
            return await self._leave(key[0])
        jobs = self._store.of("FineTuneJob", key)
        if not jobs:
            self._refused.pop(key, None)
            self._unreadable.pop(key, None)
            self._gatherer.forget(key)
            self._store.looked_at(key, self._store.departed(key))
            return None
        job = max(jobs, key=lambda each: (reading.created(each), reading.version(each)))
        if not self.ray_installed:
            self.ray_installed = await self._cluster.list("RayJob", key[0]) is not None
        departed, now = self._store.departed(key), self._clock()
        known = {"ray_installed": self.ray_installed, "refused": self._refused.get(key, {})}
        objects = await self._gatherer.gather(key, job, departed, now, **known)
        try:
            seen = observe(objects, self._settings, self._clock())
        except UnreadableStatusError as error:
            version = reading.text(job, "metadata", "resourceVersion")
            if self._unreadable.get(key) != version:
                self._unreadable[key] = version
                await self._tell(job, Event("Warning", "Internal", f"The job is left alone: {error}."))
            return None
        decision, began = decide(seen), monotonic()
        changed = decision.status != seen.status
        if changed:
            wanted = decision.status.to_api()
            patch = merge_patch(dict(reading.part(job, "status")), wanted)
            job = await self._write_status(job, patch, wanted)
            for entry in audit_entries(seen.job, seen.status, decision.status):
                log.info("%s %s/%s", entry["what"], *key, extra={FIELDS: entry})
        self._store.looked_at(key, departed)
        for event in decision.events:
            await self._tell(job, event)
        await self._act(job, decision.actions, began if changed else None)
        waits = [(decision.again_at - seen.now).total_seconds()] if decision.again_at else []
        if decision.status.phase in (Phase.QUEUED, Phase.TRAINING) and seen.runs:
            waits.append(PROGRESS_SECONDS)
        if changed or decision.actions:
            waits.append(FOLLOW_UP_SECONDS)
        return max(SOONEST_SECONDS, min(waits)) if waits else None

    async def _write_status(self, job: Object, patch: dict[str, Any], wanted: dict[str, Any]) -> Object:
        try:
            written = await self._cluster.patch_status("FineTuneJob", dict(job), patch)
        except ClusterError as error:
            live = await self._refresh(job)
            same = live is not None and reading.uid(live) == reading.uid(job)
            if live is not None and same and error.unheard and reading.part(live, "status") == wanted:
                return live  # the answer was lost, not the write
            if error.conflict or error.gone:
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

    async def _act(self, job: Object, actions: Sequence[Action], alive_at: float | None) -> None:
        """What was decided. `alive_at`: when the API server was last asked about the job, which was there then."""
        namespace, key = reading.text(job, "metadata", "namespace"), self._store.key("FineTuneJob", job)
        for action in actions:  # first what frees something: what is refused must not hold that back
            if isinstance(action, Delete):
                await self._cluster.delete(action.kind, namespace, action.name, action.uid)
        for action in actions:
            if isinstance(action, Delete):
                continue
            alive_at = await self._still_there(job, alive_at)
            if isinstance(action, Mend):
                await self._mend(key, action.object, reading.uid(job))
            else:
                await self._create(key, action.object, reading.uid(job))

    async def _still_there(self, job: Object, alive_at: float | None) -> float:
        """Nothing is made for a job that changed, went, or is to go. Returns when that was last known."""
        asked = monotonic()
        live: Object | None = job
        if alive_at is None or asked - alive_at > LIVE_SECONDS:
            live, alive_at = await self._refresh(job), asked
        version = reading.text(job, "metadata", "resourceVersion")
        if live is None or reading.text(live, "metadata", "resourceVersion") != version or reading.deleting(live):
            raise StaleError("the job changed before its child was made")
        return alive_at

    async def _mend(self, key: Key, wanted: Object, uid: str) -> None:
        kind, name = wanted["kind"], reading.name(wanted)
        known = [*self._store.of(kind, key), *self._store.of(kind, (key[0], ""))]
        found = next((each for each in known if reading.name(each) == name and is_own(each, uid)), None)
        if found is None:
            raise StaleError(f"{kind} {name} went before it was mended")
        labels = reading.part(wanted, "metadata", "labels")
        patch = {"metadata": {"labels": labels}, "spec": merge_patch(reading.part(found, "spec"), wanted["spec"])}
        try:
            mended = await self._cluster.patch(kind, found, patch)
        except ClusterError as error:
            self._note_refusal(key, name, error)
            raise
        self._store.put(kind, mended)
        if mended["spec"] != wanted["spec"]:
            self._refused.setdefault(key, {})[name] = "something in the cluster changes it as soon as it is written"
            raise StaleError(f"{kind} {name} does not become what it should be")
        self._refused.get(key, {}).pop(name, None)

    async def _create(self, key: Key, wanted: Object, uid: str) -> None:
        kind, name = wanted["kind"], reading.name(wanted)
        try:
            self._store.put(kind, await self._cluster.create(dict(wanted)))
            self._refused.get(key, {}).pop(name, None)
        except ClusterError as error:
            if error.gone and kind == "RayJob":
                self.ray_installed = False
                return
            self._note_refusal(key, name, error)
            if not error.conflict:
                raise
            await self._note_taken(kind, key, wanted, uid)

    def _note_refusal(self, key: Key, name: str, error: ClusterError) -> None:
        if error.refused:
            self._refused.setdefault(key, {})[name] = str(error)

    async def _note_taken(self, kind: str, key: Key, wanted: Object, uid: str) -> None:
        """A name is taken: by the job's own object, which is as well, or StaleError by another's, to be seen next."""
        name, since = reading.name(wanted), self._store.moment
        found = await self._cluster.get(kind, key[0], name)
        if found is None:
            raise StaleError(f"{kind} {name} was there a moment ago")
        self._store.found(kind, found, self._store.key(kind, wanted), since)
        if not is_own(found, uid):
            raise StaleError(f"{kind} {name} is there already")

    async def _leave(self, namespace: str) -> float | None:
        """When a namespace's last job is gone its policy goes too, once no pod needs it."""
        if self._store.jobs_in(namespace):
            return None
        policy = await self._cluster.get("NetworkPolicy", namespace, DENY_POLICY)
        pods = await self._cluster.list("Pod", namespace, label_selector=JOB_LABEL)
        if policy is None or pods is None:
            return None
        jobs = self._store.jobs_in(namespace)  # one may have come meanwhile
        if action := unneeded_policy(jobs, pods.items, [policy]):
            self._store.drop("NetworkPolicy", policy)
            await self._cluster.delete(action.kind, namespace, action.name, action.uid)
        return PODS_LEFT_SECONDS if pods.items and not jobs else None

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
            key = self._store.key("FineTuneJob", job)
            log.warning("an Event was not told: %s", error, extra=about_job(key))
