"""Everything that happens to objects of the cluster, as watches tell it: nothing is missed between two looks."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import urllib3

from cluster.control_plane.api import Api, ApiError, Object
from cluster.control_plane.plane import ControlPlane

LIVES_S = 2.0
"""A watch begins anew so often, so that it can be ended."""
COLLECTIONS = {
    "finetunejobs": "/apis/cloister.dev/v1alpha1/finetunejobs",
    "jobs": "/apis/batch/v1/jobs",
    "rayjobs": "/apis/ray.io/v1/rayjobs",
    "rayclusters": "/apis/ray.io/v1/rayclusters",
    "configmaps": "/api/v1/configmaps",
    "networkpolicies": "/apis/networking.k8s.io/v1/networkpolicies",
}


@dataclass(frozen=True)
class Entry:
    """An object was added, modified or deleted."""

    what: str
    kind: str
    object: Object

    @property
    def namespace(self) -> str:
        """Where it is."""
        found: str = self.object["metadata"]["namespace"]
        return found

    @property
    def name(self) -> str:
        """Its name."""
        found: str = self.object["metadata"]["name"]
        return found

    @property
    def uid(self) -> str:
        """Its UID."""
        found: str = self.object["metadata"]["uid"]
        return found

    @property
    def version(self) -> int:
        """When it happened, in the cluster's own order; of all kinds, as long as one etcd holds them."""
        return int(self.object["metadata"]["resourceVersion"])


class Chronicle:
    """Watches several kinds in all namespaces. After a failure of a watch the kind is listed, and what is gone is told.

    An entry of one kind is told in the order of the cluster; `entries` sorts those of several kinds.
    """

    def __init__(self, plane: ControlPlane, *kinds: str) -> None:
        self._plane = plane
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        self._known: dict[str, dict[str, Object]] = {kind: {} for kind in kinds}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._begun = {kind: threading.Event() for kind in kinds}
        self._failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._follow, args=(kind,)) for kind in kinds]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        for begun in self._begun.values():
            assert begun.wait(30), "the first lists never came"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._failure:
            raise self._failure

    def entries(self, namespace: str, *kinds: str) -> list[Entry]:
        """What happened in a namespace, in order."""
        with self._lock:
            found = [each for each in self._entries[namespace] if not kinds or each.kind in kinds]
        return sorted(found, key=lambda each: each.version)

    def uids(self, namespace: str, named: Callable[[str], bool]) -> dict[tuple[str, str], set[str]]:
        """By kind and name the UIDs of all objects that were ever there under such a name."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for each in self.entries(namespace):
            if named(each.name):
                found[each.kind, each.name].add(each.uid)
        return found

    def _follow(self, kind: str) -> None:
        try:
            with Api(self._plane.kubeconfig) as api:
                version = None
                while not self._ended.is_set():
                    try:
                        if version is None:
                            version = self._list(kind, api)
                            self._begun[kind].set()
                        version = self._watch(kind, api, version)
                    except (ApiError, OSError, urllib3.exceptions.HTTPError):
                        version = None
                        self._ended.wait(0.1)
        except BaseException as error:
            self._failure = error
            raise

    def _list(self, kind: str, api: Api) -> str:
        found = api.get(COLLECTIONS[kind])
        version: str = found["metadata"]["resourceVersion"]
        seen = {each["metadata"]["uid"] for each in found["items"]}
        for uid, known in list(self._known[kind].items()):
            if uid not in seen:
                self._note("DELETED", kind, {**known, "metadata": {**known["metadata"], "resourceVersion": version}})
        for each in found["items"]:
            self._note("ADDED", kind, each)
        return version

    def _watch(self, kind: str, api: Api, version: str) -> str | None:
        """Follow one watch; the version to go on from, or None to list again."""
        query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={LIVES_S:.0f}&resourceVersion={version}"
        for event in api.stream(f"{COLLECTIONS[kind]}?{query}"):
            if event["type"] == "ERROR":
                return None
            if event["type"] != "BOOKMARK":
                self._note(event["type"], kind, event["object"])
            version = event["object"]["metadata"]["resourceVersion"]
        return version

    def _note(self, what: str, kind: str, found: Object) -> None:
        uid = found["metadata"]["uid"]
        before = self._known[kind].get(uid)
        if what == "DELETED":
            self._known[kind].pop(uid, None)
        else:
            if before is not None and before["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]:
                return
            self._known[kind][uid] = found
        with self._lock:
            self._entries[found["metadata"]["namespace"]].append(Entry(what, kind, found))
