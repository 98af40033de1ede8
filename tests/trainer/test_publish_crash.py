"""A crash of publish at any call to the store leaves the old adapter or the new one, and a second call finishes."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import StorageDefaults
from cloister_trainer.prepare.main import prepare
from cloister_trainer.publish.check import Reused
from cloister_trainer.publish.main import publish
from cloister_trainer.publish.verify import verify_adapter
from cloister_trainer.records import PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import AlreadyExists, Changed, Storage, Unreachable, open_storage
from cloister_trainer.workspace import Workspace
from support.failing_storage import CHANGING, Crash, Moment, RecordingStorage
from support.publishing import compute_once, with_merged
from support.signing import KeyPair, make_keys
from support.staged_run import StagedRun, stage

OLD_UID = "99999999-2222-3333-4444-555555555555"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def run_publish(staged: StagedRun, storage: Storage, scratch: Path, key: Path | None = None) -> None:
    publish(staged.run, staged.plan, storage, Reporter.silent(), scratch, key, clock=lambda: NOON)


def tree(root: Path) -> dict[str, str]:
    """sha256 of every file below `root`."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def named_uid(output: Path) -> str | None:
    """The uid that current.json names, after checking that its folder is complete; None without current.json."""
    if not (output / "current.json").exists():
        return None
    pointer = json.loads((output / "current.json").read_text())
    manifest = (output / pointer["folder"] / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == pointer["manifestDigest"]
    for file in json.loads(manifest)["files"]:
        found = (output / pointer["folder"] / file["name"]).read_bytes()
        assert hashlib.sha256(found).hexdigest() == file["sha256"], file["name"]
    uid: str = pointer["uid"]
    return uid


class Situation:
    """A staged run, and an output with an older adapter or none; put back as often as needed."""

    def __init__(
        self, root: Path, model: Path, adapter: Path, *, replacing: bool = True, keys: KeyPair | None = None
    ) -> None:
        self.root, self.scratch = root / "store", root / "scratch"
        self.keys, self.old_uid = keys, OLD_UID if replacing else None
        self._pristine = root / "pristine"
        storage = open_storage(environ={})
        if replacing:
            old = stage(self.root.as_uri(), model, adapter, uid=OLD_UID)
            old.store(storage)
            run_publish(old, storage, self.scratch)
        output = {"ifExists": "Replace" if replacing else "Fail", "mergedModel": keys is not None}
        self.staged = stage(self.root.as_uri(), model, adapter, output=output)
        self.staged.store(storage)
        if keys is not None:
            with_merged(self.staged, storage)
        shutil.copytree(self.root, self._pristine)

    @property
    def output(self) -> Path:
        return Path(self.staged.run.spec.output.uri.removeprefix("file://"))

    def reset(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self._pristine, self.root)

    def publish(self, storage: Storage) -> None:
        run_publish(self.staged, storage, self.scratch, self.keys.private if self.keys else None)

    def end(self) -> dict[str, str]:
        """What a finished publication left; a signature, which is random, and what names it are verified instead."""
        assert named_uid(self.output) == self.staged.run.uid
        if self.keys is None:
            return tree(self.root)
        report = verify_adapter(open_storage(environ={}), self.output.as_uri(), self.keys.public)
        assert report.ok, report.checks
        random = ("model.sig", "manifest.json", "current.json", "published.json")
        return {name: "" if name.endswith(random) else digest for name, digest in tree(self.root).items()}


@pytest.fixture(scope="module")
def situation(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_adapter: Path) -> Situation:
    return Situation(tmp_path_factory.mktemp("crash"), tiny_llama, tiny_adapter)


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("signed_and_merged", [False, True])
@pytest.mark.parametrize("replacing", [False, True])
def test_every_call_may_be_the_last(
    replacing: bool,
    signed_and_merged: bool,
    moment: Moment,
    tmp_path: Path,
    tiny_llama: Path,
    tiny_adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_once(monkeypatch)
    keys = make_keys(tmp_path) if signed_and_merged else None
    situation = Situation(tmp_path, tiny_llama, tiny_adapter, replacing=replacing, keys=keys)
    undisturbed = RecordingStorage()
    situation.publish(undisturbed)
    expected = situation.end()
    pointer = situation.staged.run.output.pointer
    pointer_moved_at = undisturbed.calls.index(("replace" if replacing else "create", pointer))

    for number, (name, uri) in enumerate(undisturbed.calls):
        if moment is Moment.AFTER and name not in CHANGING:
            continue
        situation.reset()
        with pytest.raises(Crash if moment is Moment.BEFORE else Unreachable):
            situation.publish(RecordingStorage(number, moment))

        moved = number > pointer_moved_at or (number == pointer_moved_at and moment is Moment.AFTER)
        assert named_uid(situation.output) == (situation.staged.run.uid if moved else situation.old_uid), (name, uri)
        situation.publish(open_storage(environ={}))
        assert situation.end() == expected, f"after a crash {moment.value} call {number}, {name} {uri}"


def test_leftovers_of_a_crash_that_do_not_belong_are_removed(situation: Situation) -> None:
    situation.reset()
    leftover = situation.output / situation.staged.run.uid / "model.sig"
    leftover.parent.mkdir()
    leftover.write_text("of an earlier, signed attempt")

    run_publish(situation.staged, open_storage(environ={}), situation.scratch)

    assert not leftover.exists()
    assert named_uid(situation.output) == situation.staged.run.uid


def run_prepare(staged: StagedRun, storage: Storage, scratch: Path) -> PlanFile | Reused:
    return prepare(staged.run, storage, Reporter.silent(), Workspace(scratch), None, clock=lambda: NOON)


def test_a_clean_up_that_was_cut_short_is_finished_by_prepare(situation: Situation) -> None:
    """Once the pointer has moved, prepare finds the adapter, and publish is not run again."""
    undisturbed, storage, layout = RecordingStorage(), open_storage(environ={}), situation.staged.run.layout
    situation.reset()
    run_publish(situation.staged, undisturbed, situation.scratch)
    expected = tree(situation.root)
    situation.reset()
    with pytest.raises(Crash):
        crash_at = undisturbed.calls.index(("delete_prefix", layout.tokens))
        run_publish(situation.staged, RecordingStorage(crash_at), situation.scratch)
    assert named_uid(situation.output) == situation.staged.run.uid
    assert storage.list(layout.tokens)

    found = run_prepare(situation.staged, storage, situation.scratch)

    assert isinstance(found, Reused)
    assert tree(situation.root) == expected, "tokens and checkpoints are gone, and the record says so"


def test_what_was_written_after_the_clean_up_goes_too(situation: Situation) -> None:
    storage, layout = open_storage(environ={}), situation.staged.run.layout
    situation.reset()
    run_publish(situation.staged, storage, situation.scratch)
    storage.write(f"{layout.checkpoint(41)}/index.json", b"by a pod that was given up")

    run_prepare(situation.staged, storage, situation.scratch)

    assert storage.list(layout.checkpoints) == []


@pytest.mark.parametrize("keep", ["OnFailure", "Always"])
def test_tokens_go_when_prepare_finds_an_equal_adapter(
    keep: str, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(environ={})
    old = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, uid=OLD_UID)
    old.store(storage)
    run_publish(old, storage, tmp_path / "scratch")
    new = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, output={"ifExists": "Reuse", "keepRun": keep})

    def write_tokens(*_: object) -> PlanFile:
        storage.write(f"{new.run.layout.tokens}/index.json", b"{}")
        return new.plan

    monkeypatch.setattr("cloister_trainer.prepare.main.make_plan", write_tokens)

    found = run_prepare(new, storage, tmp_path / "scratch")

    assert isinstance(found, Reused)
    assert found.uid == OLD_UID
    assert bool(storage.list(new.run.layout.tokens)) == (keep == "Always")


class ForgetfulStorage(Storage):
    """A store whose first answer to every conditional write is lost, so that the client's retry meets its own write."""

    def __init__(self) -> None:
        super().__init__(StorageDefaults(), {})

    def create(self, uri: str, data: bytes) -> str:
        super().create(uri, data)
        raise AlreadyExists(f"{uri} exists already.")

    def replace(self, uri: str, data: bytes, etag: str) -> str:
        super().replace(uri, data, etag)
        raise Changed(f"{uri} was changed.")


def test_a_retry_that_meets_its_own_write_counts_as_made(situation: Situation) -> None:
    situation.reset()

    run_publish(situation.staged, ForgetfulStorage(), situation.scratch)

    assert named_uid(situation.output) == situation.staged.run.uid


def test_a_complete_folder_with_another_adapter_is_never_changed(situation: Situation) -> None:
    situation.reset()
    run_publish(situation.staged, open_storage(environ={}), situation.scratch)
    (situation.output / "current.json").unlink()
    before = tree(situation.output / situation.staged.run.uid)
    storage = open_storage(environ={})
    other = situation.staged.checks.adapter.model_copy(update={"sha256": "0" * 64})
    checks = situation.staged.checks.model_copy(update={"adapter": other})
    storage.write(situation.staged.run.layout.checks_file, checks.model_dump_json(by_alias=True).encode())

    with pytest.raises(CloisterError, match="never changed") as refused:
        run_publish(situation.staged, storage, situation.scratch)

    assert refused.value.reason is FailureReason.OUTPUT_EXISTS
    assert tree(situation.output / situation.staged.run.uid) == before
