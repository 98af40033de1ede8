"""What was last seen of every object: by kind, by the job it is labelled with, by UID."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cloister_operator.kept import what_is_read
from cloister_operator.names import JOB_LABEL
from cloister_operator.observe import reading

MAX_DEPARTED = 32
MAX_GONE = 20_000

Object = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name of a job."""
BY_NAMESPACE, BY_OUTPUT = "FineTuneJobs by namespace", "FineTuneJobs by output"


class Store:
    """Fed by watches, by lists and by the operator's own writes. Labels only say where to look, never whose it is."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, Object]] = defaultdict(dict)
        self._by_key: dict[str, dict[Key, set[str]]] = defaultdict(lambda: defaultdict(set))
        """UIDs by key, in an index for each kind and two more for FineTuneJobs."""
        self._places: dict[tuple[str, str], set[tuple[str, Key]]] = defaultdict(set)
        """By kind and UID: where an object stands in these indices."""
        self._departed: dict[Key, list[Object]] = defaultdict(list)
        self._gone: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        """By kind and UID: the version at which an object went, and the `moment` of that.

        An older answer about it may still be on its way.
        """
        self._moment = 0

    def put(self, kind: str, found: Object) -> bool:
        """An object was seen. Whether that is news: a version that is not newer than the known one is ignored."""
        uid = reading.uid(found)
        known = self._objects[kind].get(uid)
        newest = self._gone.get((kind, uid), (-1, 0))[0] if known is None else reading.version(known)
        if reading.version(found) <= newest:
            return False
        self._objects[kind][uid] = what_is_read(kind, found)
        for index, key in _places(kind, found):
            self._enter(kind, uid, index, key)
        return True

    @property
    def moment(self) -> int:
        """Counts what goes: to be noted before an object is asked for by name."""
        return self._moment

    def found(self, kind: str, found: Object, key: Key, since: int) -> None:
        """An object that was asked for at the moment `since`, shown under a key whatever its labels say.

        It is there, although a watch or list by labels, which it lost, may have told before that it went.
        """
        gone = self._gone.get((kind, reading.uid(found)))
        if gone is not None and gone[1] > since:
            return
        self._gone.pop((kind, reading.uid(found)), None)
        self.put(kind, found)
        self.file(kind, found, key)

    def file(self, kind: str, found: Object, key: Key) -> None:
        """Show an object under another key too: it has a child's name, whatever its labels say."""
        self._enter(kind, reading.uid(found), kind, key)

    def _enter(self, kind: str, uid: str, index: str, key: Key) -> None:
        self._by_key[index][key].add(uid)
        self._places[kind, uid].add((index, key))

    def drop(self, kind: str, found: Object, version: int = 0) -> None:
        """An object is gone, at its own version or a later one.

        A pod that failed is kept until its job was looked at: KubeRay deletes it at once.
        """
        uid = reading.uid(found)
        self._objects[kind].pop(uid, None)
        self._moment += 1
        self._gone[kind, uid] = max(reading.version(found), version), self._moment
        if len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)
        for index, place in self._places.pop((kind, uid), ()):
            self._by_key[index][place].discard(uid)
            if not self._by_key[index][place]:
                del self._by_key[index][place]
        key = self.key(kind, found)
        if kind == "Pod" and key[1] and reading.text(found, "status", "phase") == "Failed":
            metadata = {"deletionTimestamp": "", **reading.part(found, "metadata")}
            departed = {**what_is_read(kind, found), "metadata": metadata}
            self._departed[key] = [*self._departed[key], departed][-MAX_DEPARTED:]

    def departed(self, key: Key) -> list[Object]:
        """Failed pods of a job that are gone already."""
        return list(self._departed.get(key, ()))

    def looked_at(self, key: Key, departed: list[Object]) -> None:
        """What these pods showed is in status now."""
        left = [pod for pod in self._departed.pop(key, []) if pod not in departed]
        if left:
            self._departed[key] = left

    def replace(self, kind: str, found: Iterable[Object], version: int) -> tuple[list[Object], list[Object]]:
        """A list of the kind: what is older and not in it is gone. Returns what is news, and what was gone."""
        seen = {reading.uid(each): each for each in found}
        known = self._objects[kind]
        lost = [each for uid, each in known.items() if uid not in seen and reading.version(each) <= version]
        for each in lost:
            self.drop(kind, each, version)
        return [each for each in seen.values() if self.put(kind, each)], lost

    def key(self, kind: str, found: Object) -> Key:
        """Where an object belongs: its job's namespace and name; of a Workload, the UID of what it stands for."""
        return _places(kind, found)[0][1]

    def of(self, kind: str, key: Key) -> list[Object]:
        """Objects of a kind that belong to one key."""
        return self._found(kind, kind, key)

    def jobs_in(self, namespace: str) -> list[Object]:
        """The FineTuneJobs of a namespace."""
        return self._found("FineTuneJob", BY_NAMESPACE, (namespace, ""))

    def jobs_with_output(self, uri: str) -> list[Object]:
        """The FineTuneJobs, of all namespaces, that publish to one place."""
        return self._found("FineTuneJob", BY_OUTPUT, ("", uri))

    def _found(self, kind: str, index: str, key: Key) -> list[Object]:
        known = self._objects[kind]
        return [known[uid] for uid in self._by_key[index].get(key, ()) if uid in known]

    def all(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return list(self._objects[kind].values())

    def by_uid(self, kind: str, uid: str) -> Object | None:
        """The object with this UID."""
        return self._objects[kind].get(uid)


def _places(kind: str, found: Object) -> tuple[tuple[str, Key], ...]:
    """Where an object stands: the index and the key; first the one of its kind, by its job."""
    namespace = reading.text(found, "metadata", "namespace")
    if kind == "FineTuneJob":
        output = "", reading.output(found)
        return (kind, (namespace, reading.name(found))), (BY_NAMESPACE, (namespace, "")), (BY_OUTPUT, output)
    if kind == "Workload":
        return ((kind, (namespace, reading.text(reading.controller(found), "uid"))),)
    return ((kind, (namespace, reading.labels(found).get(JOB_LABEL, ""))),)
