"""Pods, Events and Kueue's Workloads as facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloister_api.termination import parse_termination
from cloister_operator.names import Role
from cloister_operator.observe import reading
from cloister_operator.observe.facts import Container, Notice, Pod, Workload
from cloister_operator.observe.reading import Object, moment, part, parts, quoted, text


def pod_facts(pod: Object, role: Role, events: Sequence[Object]) -> Pod:
    """One pod; that it belongs to the job is the caller's to know."""
    scheduled = reading.condition(pod, "PodScheduled")
    statuses = [*parts(pod, "status", "initContainerStatuses"), *parts(pod, "status", "containerStatuses")]
    return Pod(
        uid=reading.uid(pod),
        name=reading.name(pod),
        role=role,
        created=reading.created(pod),
        phase=text(pod, "status", "phase"),
        reason=text(pod, "status", "reason"),
        message=quoted(pod, "status", "message"),
        node=text(pod, "spec", "nodeName"),
        scheduled=moment(scheduled, "lastTransitionTime") if reading.holds(pod, "PodScheduled") else None,
        unschedulable=quoted(scheduled, "message") if text(scheduled, "reason") == "Unschedulable" else "",
        disruption=text(reading.condition(pod, "DisruptionTarget"), "reason")
        if reading.holds(pod, "DisruptionTarget")
        else "",
        ready=reading.holds(pod, "Ready"),
        deleting=reading.deleting(pod),
        containers=tuple(map(_container, statuses)),
        notices=notices(events, reading.uid(pod)),
    )


def _container(status: Object) -> Container:
    waiting = part(status, "state", "waiting")
    ended = part(status, "state", "terminated") or part(status, "lastState", "terminated")
    exit_code = reading.number(ended, "exitCode")
    return Container(
        name=text(status, "name"),
        ready=reading.flag(status, "ready"),
        waiting=text(waiting, "reason"),
        waiting_message=quoted(waiting, "message"),
        exit_code=exit_code,
        restarts=reading.number(status, "restartCount") or 0,
        ended=text(ended, "reason") if exit_code is not None else "",
        message=parse_termination(text(ended, "message")) if exit_code is not None else None,
        ended_at=moment(ended, "finishedAt"),
    )


def notices(events: Iterable[Object], uid: str) -> tuple[Notice, ...]:
    """The Warning Events about one object, the newest last."""
    found = []
    for event in events:
        if text(event, "type") != "Warning" or text(event, "involvedObject", "uid") != uid:
            continue
        made = moment(event, "firstTimestamp") or moment(event, "eventTime") or reading.created(event)
        last = moment(event, "lastTimestamp") or moment(event, "series", "lastObservedTime") or made
        found.append(Notice(text(event, "reason"), quoted(event, "message"), made, last))
    return tuple(sorted(found, key=lambda notice: notice.last))


def workload_facts(workloads: Sequence[Object], owner: str) -> Workload | None:
    """Kueue's Workload of the object with this UID."""
    own = [found for found in workloads if any(text(ref, "uid") == owner for ref in _owners(found))]
    if not own:
        return None
    newest = max(own, key=reading.created)
    quota, evicted = reading.condition(newest, "QuotaReserved"), reading.condition(newest, "Evicted")
    return Workload(
        reserved=text(quota, "status") == "True",
        evicted=text(evicted, "status") == "True",
        message=quoted(quota, "message") or quoted(evicted, "message"),
        since=moment(quota, "lastTransitionTime") or reading.created(newest),
    )


def _owners(value: Object) -> list[Object]:
    return parts(value, "metadata", "ownerReferences")
