"""A small cluster in memory: what the operator's decisions do is kept as objects.

It keeps the API server's promises that decisions build on: UIDs, names that are taken, deletion in the foreground,
owner references that take children along, and a status that is written before anything else is done.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

from cloister_api.status import FineTuneJobStatus
from cloister_operator.decide.actions import Action, Create, Decision, Delete, Mend
from cloister_operator.decide.core import decide
from cloister_operator.decide.patch import merge_patch
from cloister_operator.observe.children import Objects
from cloister_operator.observe.facts import Observation
from cloister_operator.observe.observation import observe
from cloister_operator.settings import Settings
from support.api_jobs import SMALLEST, job_with
from support.operator_values import START, settings, stamp


class KeptWorld:
    """One FineTuneJob, its children, and a clock; the operator's part, and the API server's."""

    def __init__(
        self,
        changes: dict[str, Any] | None = None,
        admin: Settings | None = None,
        job: dict[str, Any] = SMALLEST,
    ) -> None:
        self.now = START
        self.settings = admin or settings()
        self.numbers = itertools.count(1)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        self.other_jobs: list[dict[str, Any]] = []
        self._read: tuple[Any, FineTuneJobStatus] = ({}, FineTuneJobStatus())
        self.ray_installed = True
        self.refused: dict[str, str] = {}
        self.version = 0
        self.made: list[str] = []
        """Names of everything that was created, in order."""
        self.job = job_with(changes or {}, job)
        self.job["metadata"] |= {"uid": self.new_uid(), "generation": 1, "creationTimestamp": stamp(self.now)}
        self.bump(self.job)

    # the operator

    def observe(self) -> Observation:
        """What is to be seen now."""
        kinds: dict[str, list[dict[str, Any]]] = {}
        for (kind, _), found in self.objects.items():
            kinds.setdefault(kind, []).append(found)
        return observe(
            Objects(
                job=self.job,
                jobs=kinds.get("Job", []),
                pods=kinds.get("Pod", []),
                ray_jobs=kinds.get("RayJob", []),
                ray_clusters=kinds.get("RayCluster", []),
                workloads=kinds.get("Workload", []),
                config_maps=kinds.get("ConfigMap", []),
                network_policies=kinds.get("NetworkPolicy", []),
                events=self.events,
                logs=self.logs,
                other_jobs=[*self.other_jobs, self.job],
                ray_installed=self.ray_installed,
                refused=self.refused,
            ),
            self.settings,
            self.now,
        )

    def decide(self) -> Decision:
        """The decision about what is to be seen now; nothing is done."""
        return decide(self.observe())

    def step(self) -> Decision:
        """Decide, store the status, act."""
        decision = self.decide()
        self.store(decision.status)
        for action in decision.actions:
            self.act(action)
        return decision

    def settle(self, most: int = 20) -> FineTuneJobStatus:
        """Decide until nothing changes any more; what is deleted is gone at once."""
        for _ in range(most):
            before = json.dumps([self.job, sorted(self.objects), self.made])
            self.step()
            self.collect()
            if json.dumps([self.job, sorted(self.objects), self.made]) == before:
                return self.status
        raise AssertionError(f"no rest after {most} decisions: {self.status.to_api()}")

    def store(self, status: FineTuneJobStatus) -> None:
        """Write a status as the edge does: by a merge patch, through JSON."""
        old, new = self.job.get("status", {}), status.to_api()
        merged = json.loads(json.dumps(_merged(old, merge_patch(old, new))))
        assert merged == new
        self.job["status"] = merged

    def patch_status(self, patch: dict[str, Any]) -> None:
        """Write a status as the API server does."""
        self.job["status"] = json.loads(json.dumps(_merged(self.job.get("status", {}), patch)))
        self.bump(self.job)

    def bump(self, found: dict[str, Any]) -> None:
        """An object was written: it has a new version."""
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)

    def act(self, action: Action) -> None:
        """Do what a decision asks for, as the API server would."""
        if isinstance(action, Delete):
            self.delete(action)
            return
        rendered = copy.deepcopy(action.object)
        key = (rendered["kind"], rendered["metadata"]["name"])
        if isinstance(action, Create) and (key in self.objects or key[1] in self.refused):
            return
        if isinstance(action, Mend):
            self.patch(*key, {"spec": merge_patch(self.objects[key]["spec"], rendered["spec"])})
            return
        assert "deletionTimestamp" not in self.job["metadata"], "made after deletion"
        rendered["metadata"] |= {"uid": self.new_uid(), "creationTimestamp": stamp(self.now)}
        if key not in self.objects:
            self.made.append(f"{key[0]} {key[1]}")
        self.objects[key] = rendered
        self.bump(rendered)

    def patch(self, kind: str, name: str, patch: dict[str, Any]) -> None:
        """Change an object by a merge patch."""
        self.objects[kind, name] = _merged(self.objects[kind, name], patch)
        self.bump(self.objects[kind, name])

    def delete(self, action: Delete) -> None:
        """Mark for deletion, if the UID is still the same."""
        found = self.job if action.kind == "FineTuneJob" else self.objects.get((action.kind, action.name))
        if found is not None and found["metadata"]["uid"] == action.uid:
            found["metadata"].setdefault("deletionTimestamp", stamp(self.now))
            self.bump(found)

    def collect(self) -> None:
        """The garbage collector: what is being deleted goes, with all that it controls."""
        while gone := [key for key, found in self.objects.items() if self._is_gone(found)]:
            for key in gone:
                del self.objects[key]

    def _is_gone(self, found: dict[str, Any]) -> bool:
        uids = {one["metadata"]["uid"] for one in (*self.objects.values(), self.job)}
        owners = found["metadata"].get("ownerReferences", [])
        orphan = bool(owners) and all(owner["uid"] not in uids for owner in owners)
        return orphan or "deletionTimestamp" in found["metadata"]

    # what is there

    @property
    def status(self) -> FineTuneJobStatus:
        """The stored status."""
        stored = self.job.get("status", {})
        if self._read[0] is not stored:
            self._read = stored, FineTuneJobStatus.model_validate(stored)
        return self._read[1]

    def conditions(self) -> dict[str, tuple[str, str]]:
        """Status and reason of every condition."""
        return {found.type.value: (found.status, found.reason) for found in self.status.conditions or []}

    def find(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [found for (each, _), found in self.objects.items() if each == kind]

    @property
    def ray_job(self) -> dict[str, Any]:
        """The only RayJob."""
        (found,) = self.find("RayJob")
        return found

    def ray_jobs(self) -> Iterator[dict[str, Any]]:
        """RayJobs that are not going away."""
        return (found for found in self.find("RayJob") if "deletionTimestamp" not in found["metadata"])

    def new_uid(self) -> str:
        """A UID that nothing has."""
        return f"00000000-0000-4000-8000-{next(self.numbers):012d}"


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
