"""Several runs that publish to one place, and a store on which one overtakes another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister_api.layout import join
from cloister_api.status import OutputStatus
from cloister_trainer.publish import folder, main
from cloister_trainer.publish.main import publish
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage
from support.failing_storage import RecordingStorage
from support.staged_run import StagedRun, digest, stage

FIRST = "aaaaaaaa-2222-3333-4444-555555555555"
SECOND = "bbbbbbbb-2222-3333-4444-555555555555"
PROOF = {"processes": 1, "controlAnswered": 1, "time": "2026-01-01T10:00:00+00:00"}


class Place:
    """One output.uri, and runs that publish to it."""

    def __init__(self, root: Path, model: Path, adapter: Path, storage: Storage) -> None:
        self.root, self.model, self.adapter, self.storage = root, model, adapter, storage

    def staged(self, uid: str, if_exists: str = "Fail", **spec: Any) -> StagedRun:
        output = {"ifExists": if_exists, **spec.pop("output", {})}
        staged = stage(self.root.as_uri(), self.model, self.adapter, uid=uid, output=output, **spec)
        staged.store(self.storage)
        return staged

    def publish(
        self, staged: StagedRun, storage: Storage | None = None, *, key: Path | None = None, canary_refused: int = 1
    ) -> OutputStatus:
        """Publish with a proof that card and manifest name."""
        scratch, proof = self.root / "scratch" / staged.run.uid, {**PROOF, "canaryRefused": canary_refused}
        storage = storage or self.storage
        return publish(staged.run, staged.plan, storage, Reporter.silent(), scratch, key, egress=proof).output

    def named(self) -> str:
        uid: str = json.loads((self.root / "out/contracts/current.json").read_text())["uid"]
        return uid


def compute_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drawing and loading, which take most of the time and touch no store, happen in the first publication only."""
    for module, name in ((main, "check_adapter"), (folder, "plot_loss"), (folder, "render_report")):
        monkeypatch.setattr(module, name, _Once(getattr(module, name)))


class _Once:
    """A function that gives its first answer again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._answers = function, list[Any]()

    def __call__(self, *arguments: Any) -> Any:
        if not self._answers:
            self._answers.append(self._function(*arguments))
        return self._answers[0]


def with_merged(staged: StagedRun, storage: Storage) -> StagedRun:
    """The run, stored, with the base's weights as its staged merged model."""
    merged = staged.model_folder / "model.safetensors"
    staged.checks = staged.checks.model_copy(update={"merged_files": [digest(merged)]})
    staged.store(storage)
    storage.upload(merged, join(staged.run.layout.merged, merged.name))
    return staged


class OvertakenStorage(RecordingStorage):
    """The real store; just before the first call that `when` takes (by number, name and URI), `overtake` runs."""

    def __init__(self, overtake: Callable[[], object], when: Callable[[int, str, str], bool]) -> None:
        super().__init__()
        self._overtake, self._when, self.overtaken = overtake, when, False

    def _call(self, name: str, uri: str, call: Callable[[], Any]) -> Any:
        if not self.overtaken and self._when(len(self.calls), name, uri):
            self.overtaken = True
            self._overtake()
        return super()._call(name, uri, call)


def moves_pointer(_: int, name: str, uri: str) -> bool:
    """Whether a call to the store moves current.json."""
    return name in ("create", "replace") and uri.endswith("/current.json")
