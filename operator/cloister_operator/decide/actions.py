"""What a decision asks for. The edge does it: status first, with the observed resourceVersion, then the actions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloister_api.status import FineTuneJobStatus


@dataclass(frozen=True)
class Mend:
    """Give an object of the job's own, which somebody changed, the spec again that it should have."""

    object: dict[str, Any]


@dataclass(frozen=True)
class Create:
    """POST, once. That the job's own object of this name exists already is no error."""

    object: dict[str, Any]


@dataclass(frozen=True)
class Delete:
    """Delete the object with this UID and wait for its pods: in the foreground."""

    kind: str
    name: str
    uid: str


Action = Mend | Create | Delete


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the job."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """The job's new status, what to do once it is stored, and when to look again without being told."""

    status: FineTuneJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    again_at: datetime | None = None
