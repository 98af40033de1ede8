"""Calls of the Kubernetes API as a proxy sees them, and what may become of one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from cluster.control_plane.api import APPLY_PATCH

PATH = re.compile(
    r"/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>[^/]+))?"
)
VERBS = {"POST": "create", "PUT": "update", "DELETE": "delete"}
WRITES = frozenset({"create", "update", "delete", "patch", "apply"})


@dataclass(frozen=True)
class Call:
    """What the client asks for."""

    verb: str
    """get, list, watch, create, update, delete, patch or apply."""
    kind: str
    """Plural; empty for what is no object."""
    part: str = ""
    """status, log, ..."""
    namespace: str = ""
    name: str = ""

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.verb in WRITES


@dataclass(frozen=True)
class Refuse:
    """The call never reaches the server. Without a code the connection ends instead of an answer."""

    code: int = 0
    retry_after_s: int | None = None
    then: Callable[[], object] | None = None
    """Done before the client hears of it."""


@dataclass(frozen=True)
class Lose:
    """The server does what it is asked to, and the connection ends before the client hears of it."""

    then: Callable[[], object] | None = None


@dataclass(frozen=True)
class Precede:
    """Something happens before the call reaches the server."""

    first: Callable[[], object]


Fault = Refuse | Lose | Precede
Rule = Callable[[Call], Fault | None]


def read_call(method: str, path: str, content_type: str = "") -> Call:
    """What a request asks for."""
    asked = urlsplit(path)
    if not (found := PATH.fullmatch(asked.path)):
        return Call(method.lower(), "")
    namespace, name = found["namespace"] or "", found["name"] or ""
    verb = VERBS.get(method, "")
    if method == "GET":
        verb = "watch" if "watch" in parse_qs(asked.query) else "get" if name else "list"
    if method == "PATCH":
        verb = "apply" if content_type.startswith(APPLY_PATCH) else "patch"
    return Call(verb, found["kind"], found["part"] or "", namespace, name)
