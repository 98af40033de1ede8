"""What never happens to a job and its children, checked on everything that watches told, in the cluster's order."""

from __future__ import annotations

from cluster.chronicle import Chronicle, Entry
from cluster.control_plane.api import Object
from cluster.operator_jobs import DENY_POLICY

FINAL = ("Complete", "Failed")
MADE_BY_THE_OPERATOR = ("jobs", "rayjobs", "configmaps", "networkpolicies")


def assert_kept(chronicle: Chronicle, namespace: str) -> None:
    """All promises, for the one job of a namespace."""
    entries = chronicle.entries(namespace)
    one_run_at_a_time(entries)
    no_gpu_before_the_plan(entries)
    an_end_is_final(entries)
    nothing_after_deletion(entries)


def one_run_at_a_time(entries: list[Entry]) -> None:
    """No RayJob is made while one is there, not even one that is on its way out."""
    there: set[str] = set()
    for entry in entries:
        if entry.kind != "rayjobs" or owner(entry.object) is None:
            continue
        if entry.what == "DELETED":
            there.discard(entry.uid)
        else:
            there.add(entry.uid)
        assert len(there) <= 1, f"{entry.name} was made while another RayJob was there"


def no_gpu_before_the_plan(entries: list[Entry]) -> None:
    """A RayJob comes after condition Prepared, and after the attempt stands in status."""
    status: Object = {}
    made: set[str] = set()
    for entry in entries:
        if entry.kind == "finetunejobs":
            status = entry.object.get("status", {})
        elif entry.kind == "rayjobs" and owner(entry.object) is not None and entry.uid not in made:
            made.add(entry.uid)
            assert holds(status, "Prepared"), f"{entry.name} was made before prepare had ended: {status}"
            assert entry.name.endswith(f"-{status['attempt']}"), f"{entry.name} is no attempt of {status}"


def an_end_is_final(entries: list[Entry]) -> None:
    """A job is complete or failed, never both, and stays so."""
    ended: Object | None = None
    for entry in entries:
        if entry.kind != "finetunejobs":
            continue
        status = entry.object.get("status", {})
        assert not (holds(status, "Complete") and holds(status, "Failed")), status
        if ended is not None:
            kept = ("phase", "reason", "attempt", "output", "completionTime")
            assert [status.get(field) for field in kept] == [ended.get(field) for field in kept]
        if status.get("phase") in FINAL:
            ended = status
            assert holds(status, status["phase"]) and status["completionTime"]


def nothing_after_deletion(entries: list[Entry]) -> None:
    """Once the job is being deleted, nothing more is made for it."""
    gone, seen = False, set()
    for entry in entries:
        if entry.kind == "finetunejobs":
            gone = gone or entry.what == "DELETED" or "deletionTimestamp" in entry.object["metadata"]
        elif entry.kind in MADE_BY_THE_OPERATOR and (entry.name == DENY_POLICY or owner(entry.object) is not None):
            assert entry.uid in seen or not gone, f"{entry.kind} {entry.name} was made for a job that was deleted"
            seen.add(entry.uid)


def owner(found: Object) -> str | None:
    """The UID of the FineTuneJob that controls an object."""
    for each in found["metadata"].get("ownerReferences", []):
        if each["kind"] == "FineTuneJob" and each.get("controller"):
            uid: str = each["uid"]
            return uid
    return None


def holds(status: Object, kind: str) -> bool:
    """Whether a condition is True."""
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions", []))
