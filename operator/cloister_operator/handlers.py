"""What kopf tells: each event feeds the store and puts a job's key on the queue. Nothing is decided here."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Any

import kopf

from cloister_api.status import FineTuneJobStatus
from cloister_operator import metrics
from cloister_operator.cluster import LIST_CHUNK, Cluster, ClusterError, connect
from cloister_operator.decide.audit import deletion_entry
from cloister_operator.health import serve_health
from cloister_operator.listeners import listen
from cloister_operator.logs import FIELDS
from cloister_operator.names import JOB_LABEL, MANAGED_BY_LABEL, MANAGER
from cloister_operator.observe import reading
from cloister_operator.observe.gpu_time import gpu_seconds
from cloister_operator.observe.observation import UnreadableStatusError, job_of, status_of
from cloister_operator.reconcile import Reconciler
from cloister_operator.settings_file import Configuration
from cloister_operator.store import Key, Object, Store
from cloister_operator.work_queue import Work, WorkQueue

RESYNC_SECONDS = 300.0
RELIST_SECONDS = 30.0
"""Between two lists when a watch began anew: kopf lists again after it lost events, and tells nothing of deletions.
Where nothing at all is left of a kind it tells nothing, and the next list finds that out, RESYNC_SECONDS later."""
RETRY_SECONDS = 5.0
COUNT_SECONDS = 15.0
GATHER_SECONDS = 0.2
"""Between a child's change and the look at its job: several controllers change children in a row."""
WORKERS = 16
IDLE_SECONDS = 0.1
"""How long kopf keeps an object after its event: by default for seconds, which are all objects of a long list.
With 0 it would handle no event at all."""
WATCHED = {
    "FineTuneJob": ("cloister.dev", "v1alpha1", "finetunejobs"),
    "Job": ("batch", "v1", "jobs"),
    "Pod": ("", "v1", "pods"),
    "RayJob": ("ray.io", "v1", "rayjobs"),
    "RayCluster": ("ray.io", "v1", "rayclusters"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
    "Workload": ("kueue.x-k8s.io", "v1beta1", "workloads"),
}
LISTED = (*WATCHED, "ConfigMap")
_OURS = f"{MANAGED_BY_LABEL}={MANAGER}"
SELECTORS = {
    "Job": JOB_LABEL,
    "Pod": JOB_LABEL,
    "RayJob": JOB_LABEL,
    "RayCluster": JOB_LABEL,
    "NetworkPolicy": _OURS,
    "ConfigMap": _OURS,
}
"""What is watched and listed of each kind; of the others everything is."""
OPTIONAL = frozenset({"Workload"})
MOST_TOLD = 10_000
"""Deleted jobs that are remembered, so that each is told of once."""
log = logging.getLogger(__name__)


class Patient:
    """Pauses between kopf's tries to reach an API server, without an end: the operator outlives every outage."""

    def __iter__(self) -> Iterator[float]:
        yield from (1, 1, 2, 3, 5)
        yield from itertools.repeat(8.0)


class NoDifferences(kopf.DiffBaseStorage):
    """No handler here asks what changed in an object; to be able to tell, kopf copies each one at each event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing to compare."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing to store."""


class Operator:
    """The store, the queue and the reconciler of one process."""

    def __init__(self, configuration: Configuration, control_port: int, canary_port: int, health_port: int) -> None:
        self._configuration = configuration
        self._ports = (control_port, canary_port)
        self._health_port = health_port
        self.store, self.queue = Store(), WorkQueue()
        self._open = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._listed, self._watch_began = asyncio.Event(), asyncio.Event()
        self._told: deque[str] = deque(maxlen=MOST_TOLD)
        self._absent: set[str] = set()
        self._must_watch_anew = False

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Tell kopf what to watch."""
        kopf.on.login(registry=registry)(kopf.login_via_client)
        kopf.on.startup(registry=registry)(self._start)
        kopf.on.cleanup(registry=registry)(self._stop)
        for kind, (group, version, plural) in WATCHED.items():
            kopf.on.event(group, version, plural, id=f"see-{plural}", registry=registry, param=kind)(self._see)

    async def _start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.persistence.diffbase_storage = NoDifferences()
        settings.watching.chunk_size = LIST_CHUNK
        settings.queueing.idle_timeout = IDLE_SECONDS
        settings.networking.error_backoffs = Patient()
        settings.scanning.disabled = self._configuration.namespace is not None  # it may not look at namespaces and CRDs
        for kind, (group, _version, plural) in WATCHED.items():
            if kind in SELECTORS:
                settings.watching.label_selectors[group, plural] = SELECTORS[kind]
        cluster = await self._open.enter_async_context(connect(metrics.count_call))
        for port in self._ports:
            await self._open.enter_async_context(await listen("", port))
        reconciler = Reconciler(cluster, self.store, self._configuration.settings)
        work = self._timed(reconciler)
        self._tasks = [asyncio.create_task(self._work_when_listed(work)) for _ in range(WORKERS)]
        self._tasks.append(asyncio.create_task(self._keep_listing(cluster, reconciler)))
        self._tasks.append(asyncio.create_task(self._count_for_ever()))
        await self._open.enter_async_context(serve_health(self._health_port, self._is_alive, self._listed.is_set))

    def _is_alive(self) -> bool:
        """Whether everything that runs for ever still does, and every kind that is there is watched."""
        return not any(task.done() for task in self._tasks) and not self._must_watch_anew

    async def _stop(self, **_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._open.aclose()

    async def _see(self, event: kopf.RawEvent, param: Any = None, **_: Any) -> None:
        found: Object = event["object"]
        if event["type"] is None:
            self._watch_began.set()
        keys = self._keys_of(param, found)
        if event["type"] == "DELETED":
            self.store.drop(param, found)
            if param == "FineTuneJob":
                self._see_deletion(found)
        elif not self.store.put(param, found):
            return  # the operator's own write, or what a list showed
        is_new = param == "FineTuneJob" and not reading.text(found, "status", "startTime")
        for key in keys:
            self.queue.add(key, 0.0 if param == "FineTuneJob" else GATHER_SECONDS, urgent=is_new)

    def _keys_of(self, kind: str, found: Object) -> list[Key]:
        """What to look at when this object changed: mostly the job that it belongs to."""
        namespace, name = self.store.key(kind, found)
        if kind == "Workload":
            owner = self.store.by_uid("RayJob", name) or self.store.by_uid("Job", name)
            name = reading.labels(owner).get(JOB_LABEL, "") if owner else ""
        if kind == "NetworkPolicy" and not name:  # the one that all jobs of the namespace stand on
            return [self.store.key("FineTuneJob", job) for job in self.store.jobs_in(namespace)]
        return [(namespace, name)] if name else []

    def _timed(self, reconciler: Reconciler) -> Work:
        async def work(key: Key) -> float | None:
            metrics.QUEUE_DEPTH.set(len(self.queue))
            with metrics.RECONCILE_SECONDS.time():
                try:
                    return await reconciler(key)
                except Exception as error:
                    metrics.RECONCILE_ERRORS.labels(type(error).__name__).inc()
                    raise

        return work

    async def _count_for_ever(self) -> None:
        while True:
            metrics.count_jobs(self.store.all("FineTuneJob"))
            await asyncio.sleep(COUNT_SECONDS)

    async def _work_when_listed(self, work: Work) -> None:
        await self._listed.wait()
        await self.queue.run(work)

    async def _keep_listing(self, cluster: Cluster, reconciler: Reconciler) -> None:
        """List at the start, when a watch began anew, and every few minutes; wait for an API server that is away."""
        while True:
            self._watch_began.clear()
            try:
                await self._resync(cluster, reconciler)
            except Exception as error:
                log.warning("the lists are read again soon: %s", error or type(error).__name__)
                log.debug("trace", exc_info=error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._listed.set()
            await asyncio.sleep(RELIST_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._watch_began.wait(), RESYNC_SECONDS - RELIST_SECONDS)

    async def _resync(self, cluster: Cluster, reconciler: Reconciler) -> None:
        """List every kind and replace what the store knows: a watch may have missed something."""
        for kind in LISTED:
            try:
                await self._list_kind(kind, cluster, reconciler)
            except ClusterError as error:
                if kind not in OPTIONAL:
                    raise
                log.warning("the list of a kind that not every job needs cannot be read: %s", error)
        for job in self.store.all("FineTuneJob"):
            self.queue.add(self.store.key("FineTuneJob", job))
        for policy in self.store.all("NetworkPolicy"):
            if not (key := self.store.key("NetworkPolicy", policy))[1]:
                self.queue.add(key)  # the namespace's own: nobody saw whether its last job went

    async def _list_kind(self, kind: str, cluster: Cluster, reconciler: Reconciler) -> None:
        selectors = {"label_selector": SELECTORS[kind]} if kind in SELECTORS else {}
        found = await cluster.list(kind, self._configuration.namespace, **selectors)
        if kind == "RayJob":
            reconciler.ray_installed = found is not None
        if found is None:
            self._absent.add(kind)
            return
        if kind in self._absent and self._configuration.namespace is not None:
            self._must_watch_anew = True
            log.warning("%s are there now and are not watched: the operator is to be started again", kind)
        news, lost = self.store.replace(kind, found.items, found.version)
        for each in (*news, *lost):
            for key in self._keys_of(kind, each):
                self.queue.add(key)
        for job in lost if kind == "FineTuneJob" else ():
            self._see_deletion(job)

    def _see_deletion(self, job: Object) -> None:
        """Once, whether a watch told of it or a list lacked it."""
        self.queue.add((reading.text(job, "metadata", "namespace"), ""), GATHER_SECONDS)
        if reading.uid(job) in self._told:
            return
        self._told.append(reading.uid(job))
        try:
            status = status_of(job)
        except UnreadableStatusError:
            status = FineTuneJobStatus()
        entry = deletion_entry(job_of(job), status, gpu_seconds(job, datetime.now(UTC)))
        log.info("deleted %s/%s", entry["namespace"], entry["name"], extra={FIELDS: entry})
