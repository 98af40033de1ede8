"""Events and logs, which no watch shows: read again only when what is known of them is old."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cloister_operator.cluster import Cluster, ClusterError
from cloister_operator.logs import about_job
from cloister_operator.observe import reading
from cloister_operator.render.ray_job import SUBMITTER_CONTAINER
from cloister_operator.store import Key, Object

PROGRESS_SECONDS = 15.0
"""How often the submitter's log is read while a run trains."""
AWAY_SECONDS = 60.0
"""How long a log that cannot be read is left alone: its node may be away, and each try takes seconds."""
EVENTS_SECONDS = 2.0
"""How old an object is before Events about it are asked for, and how long they are not asked for again."""
MOST_OBJECTS = 8
"""Objects of a job that Events are asked about: what keeps one pod of a group from starting keeps them all."""
ENDED = frozenset({"Complete", "Failed"})
OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
"""What KubeRay has from Ray a moment before the RayJob itself has ended."""
log = logging.getLogger(__name__)


class RecentEvents:
    """Warning Events about a job's objects."""

    def __init__(self, cluster: Cluster, seconds: Callable[[], float]) -> None:
        self._cluster, self._seconds = cluster, seconds
        self._read: dict[Key, dict[str, tuple[float, list[Object]]]] = {}

    def forget(self, key: Key) -> None:
        """What was read about a job is not needed any more."""
        self._read.pop(key, None)

    async def read(self, key: Key, owners: Sequence[Object], pods: Sequence[Object], now: datetime) -> list[Object]:
        """About what has no pod, or a pod that does not start; none of what was made a moment ago."""
        about = [found for found in owners if _has_no_pod_yet(found, pods)]
        about += [pod for pod in pods if reading.text(pod, "status", "phase") == "Pending"]
        read, seconds = self._read.get(key, {}), self._seconds()
        newest: dict[str, tuple[float, list[Object]]] = {}
        for each in sorted(about, key=lambda each: (reading.created(each), reading.name(each)))[:MOST_OBJECTS]:
            uid = reading.uid(each)
            known = read.get(uid)
            age = now - reading.created(each)
            if known is None and timedelta(0) <= age < timedelta(seconds=EVENTS_SECONDS):
                continue
            if known is None or seconds - known[0] >= EVENTS_SECONDS:
                selector = f"involvedObject.uid={uid},type=Warning"
                listing = await self._cluster.list("Event", key[0], field_selector=selector)
                known = seconds, list(listing.items) if listing else []
            newest[uid] = known
        self._read[key] = newest
        return [event for _, events in newest.values() for event in events]


@dataclass(frozen=True)
class _Log:
    text: str
    again_at: float
    complete: bool
    """It was read after the run had ended."""
    away: bool = False
    """The last try failed."""

    def due(self, now: float, *, over: bool) -> bool:
        """Whether it is to be read again; at once where Ray's run is over, for its last words."""
        return now >= self.again_at or (over and not self.away)


class RecentLogs:
    """The end of the newest submitter's log of each run: what older ones said is in status."""

    def __init__(self, cluster: Cluster, seconds: Callable[[], float]) -> None:
        self._cluster, self._seconds = cluster, seconds
        self._read: dict[Key, dict[str, _Log]] = {}

    def forget(self, key: Key) -> None:
        """What was read of a job is not needed any more."""
        self._read.pop(key, None)

    async def read(
        self, key: Key, runs: Sequence[Object], jobs: Sequence[Object], pods: Sequence[Object]
    ) -> dict[str, str]:
        """Logs by the pod's UID.

        A log that cannot be read, because its node is away, says what it said before: nothing else is to wait for it.
        """
        read = self._read.get(key, {})
        newest: dict[str, _Log] = {}
        for run in runs:
            ended = reading.text(run, "status", "jobDeploymentStatus") in ENDED
            over = reading.text(run, "status", "jobStatus") in OVER
            submitters = reading.controlled_by(jobs, reading.uid(run))
            own = [pod for job in submitters for pod in reading.controlled_by(pods, reading.uid(job))]
            if own:
                pod = max(own, key=reading.created)
                known = read.get(reading.uid(pod))
                if known is None or (not known.complete and (ended or known.due(self._seconds(), over=over))):
                    known = await self._newest(key, pod, known, ended=ended)
                newest[reading.uid(pod)] = known
        self._read[key] = newest
        return {uid: found.text for uid, found in newest.items()}

    async def _newest(self, key: Key, pod: Object, known: _Log | None, *, ended: bool) -> _Log:
        now = self._seconds()
        before = known.text if known else ""
        try:
            text = await self._cluster.log(key[0], reading.name(pod), SUBMITTER_CONTAINER) or before
        except ClusterError as error:
            log.warning("the log of pod %s cannot be read: %s", reading.name(pod), error, extra=about_job(key))
            return _Log(before, now + AWAY_SECONDS, complete=ended, away=True)
        return _Log(text, now + PROGRESS_SECONDS - 1, complete=ended)


def _has_no_pod_yet(found: Object, pods: Sequence[Object]) -> bool:
    ended = reading.holds(found, "Complete") or reading.holds(found, "Failed")
    waits = ended or reading.flag(found, "spec", "suspend") or reading.deleting(found)
    return not waits and not reading.controlled_by(pods, reading.uid(found))
