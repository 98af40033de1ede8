"""Reading Kubernetes' nested objects: a value of the expected type, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from cloister_api.text import printable

Object = Mapping[str, Any]

MAX_QUOTE = 600
"""Characters of others' words that a message repeats."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def part(value: Any, *path: str) -> Object:
    """The mapping at `path`, empty when there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def parts(value: Any, *path: str) -> list[Object]:
    """The mappings in the list at `path`."""
    *parents, key = path
    found = part(value, *parents).get(key)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def text(value: Any, *path: str) -> str:
    """The text at `path`, empty when there is none."""
    *parents, key = path
    found = part(value, *parents).get(key)
    return found if isinstance(found, str) else ""


def quoted(value: Any, *path: str) -> str:
    """Others' words at `path`, on one line, without control characters, no longer than a message can carry."""
    words = " ".join(printable(re.sub(r"[\r\n\t]+", " ", text(value, *path))).split())
    return words if len(words) <= MAX_QUOTE else words[:MAX_QUOTE] + "…"


def number(value: Any, *path: str) -> int | None:
    """The whole number at `path`."""
    *parents, key = path
    found = part(value, *parents).get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def flag(value: Any, *path: str) -> bool:
    """Whether true stands at `path`."""
    *parents, key = path
    return part(value, *parents).get(key) is True


def moment(value: Any, *path: str) -> datetime | None:
    """The time at `path`."""
    try:
        found = datetime.fromisoformat(text(value, *path))
    except ValueError:
        return None
    return found if found.tzinfo else None


def labels(value: Any, field: str = "labels") -> dict[str, str]:
    """metadata.labels, or metadata.annotations."""
    return {key: word for key, word in part(value, "metadata", field).items() if isinstance(word, str)}


def uid(value: Object) -> str:
    """metadata.uid."""
    return text(value, "metadata", "uid")


def name(value: Object) -> str:
    """metadata.name."""
    return text(value, "metadata", "name")


def created(value: Object) -> datetime:
    """metadata.creationTimestamp."""
    return moment(value, "metadata", "creationTimestamp") or EPOCH


def version(value: Object) -> int:
    """metadata.resourceVersion: a later write of any object has a larger one."""
    found = text(value, "metadata", "resourceVersion")
    return int(found) if found.isascii() and found.isdecimal() else 0


def deleting(value: Object) -> bool:
    """Whether the object is going away."""
    return "deletionTimestamp" in part(value, "metadata")


def output(job: Object) -> str:
    """Where a FineTuneJob publishes: spec.output.uri without a slash at its end."""
    return text(job, "spec", "output", "uri").rstrip("/")


def has_ended(pod: Object) -> bool:
    """Whether a pod's containers have all ended for good."""
    return text(pod, "status", "phase") in ("Succeeded", "Failed")


def controller(value: Object) -> Object:
    """The owner reference that controls the object, empty when there is none."""
    return next((owner for owner in parts(value, "metadata", "ownerReferences") if flag(owner, "controller")), {})


def controlled_by(objects: Iterable[Object], owner: str) -> list[Object]:
    """The objects that the owner with this UID controls."""
    return [found for found in objects if owner and text(controller(found), "uid") == owner]


def condition(value: Object, kind: str) -> Object:
    """The condition of one type, empty when there is none."""
    return next((found for found in parts(value, "status", "conditions") if text(found, "type") == kind), {})


def holds(value: Object, kind: str) -> bool:
    """Whether the condition of one type is True."""
    return text(condition(value, kind), "status") == "True"
