"""A checkpoint's index read by another version of the trainer than the one that wrote it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister_trainer.records import FileDigest
from cloister_trainer.storage import open_storage
from cloister_trainer.train import checkpoint_index
from cloister_trainer.train.checkpoint import drop_checkpoints_beyond, newest_step
from cloister_trainer.train.checkpoint_index import CheckpointIndex
from cloister_trainer.train.state import TrainState
from support.tiny_checkpoints import fetched_step, write
from support.tiny_run import TinyRun, make_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture
def tiny(tmp_path: Path, inputs: Path) -> TinyRun:
    return make_run(tmp_path, inputs=inputs)


class LaterState(TrainState):
    note: str = "nothing"


class LaterFile(FileDigest):
    codec: str = "none"


class LaterIndex(CheckpointIndex):
    files: list[LaterFile]
    state: LaterState
    attempt: int = 1


def index_of(tiny: TinyRun, step: int) -> Path:
    return tiny.stored(f"checkpoints/step-{step:06d}/index.json")


def steps_left(tiny: TinyRun) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in tiny.stored("checkpoints").iterdir())


def sealed(content: dict[str, Any]) -> bytes:
    text = json.dumps({**content, "sha256": ""}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def test_a_trainer_with_more_fields_goes_on_from_what_this_one_wrote(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tiny, [5, 10], best=3)
    stored = index_of(tiny, 10).read_bytes()
    assert stored == sealed(json.loads(stored))
    monkeypatch.setattr(checkpoint_index, "CheckpointIndex", LaterIndex)
    later = LaterIndex.parse(stored)
    assert (later.attempt, later.state.note, later.files[0].codec) == (1, "nothing", "none")
    assert fetched_step(tiny) == newest_step(open_storage(), tiny.run.layout) == 10
    index_of(tiny, 10).write_bytes(stored.replace(b'"bestStep": 3', b'"bestStep": 4'))
    assert fetched_step(tiny) == newest_step(open_storage(), tiny.run.layout) == 5


def test_an_index_without_a_digest_of_its_own_is_taken_as_it_is(tiny: TinyRun) -> None:
    write(tiny, [5, 10], best=3)
    for step in (5, 10):
        content = json.loads(index_of(tiny, step).read_bytes())
        del content["sha256"]
        index_of(tiny, step).write_text(json.dumps(content))
    assert fetched_step(tiny) == newest_step(open_storage(), tiny.run.layout) == 10
    write(tiny, [11], keep=2)
    assert steps_left(tiny) == [10, 11]
    index_of(tiny, 11).unlink()
    index_of(tiny, 10).with_name("best.safetensors").write_bytes(b"changed")
    assert fetched_step(tiny) == 0
    drop_checkpoints_beyond(open_storage(), tiny.run.layout, 0)
    assert list(open_storage().list(tiny.run.layout.checkpoints)) == []


@pytest.mark.parametrize(
    "unreadable",
    [
        lambda content: sealed({**content, "version": 2}),
        lambda content: sealed({**content, "attempt": 1}),
        lambda content: sealed({**content, "state": {**content["state"], "note": "later"}}),
        lambda content: json.dumps({**content, "settings": {}}).encode(),
        lambda content: json.dumps(content).encode()[:-1],
        lambda _content: b"[]",
        lambda _content: b"\xff",
    ],
    ids=["version 2", "a new field", "a new field of the state", "changed", "cut", "a list", "no text"],
)
def test_one_whose_index_cannot_be_read_is_left_alone_and_counts_nowhere(
    tiny: TinyRun, unreadable: Callable[[dict[str, Any]], bytes]
) -> None:
    write(tiny, [2, 4, 6, 8])
    whole = index_of(tiny, 6).read_bytes()
    index_of(tiny, 6).write_bytes(unreadable(json.loads(whole)))
    index_of(tiny, 8).with_name("state.safetensors").write_bytes(b"short")
    assert fetched_step(tiny) == 4
    drop_checkpoints_beyond(open_storage(), tiny.run.layout, 4)
    assert steps_left(tiny) == [2, 4, 6]
    assert newest_step(open_storage(), tiny.run.layout) == 4
    write(tiny, [5], keep=2)
    assert steps_left(tiny) == [4, 5, 6]
    assert fetched_step(tiny) == newest_step(open_storage(), tiny.run.layout) == 5
    write(tiny, [7], keep=1)
    assert steps_left(tiny) == [6, 7]
    index_of(tiny, 6).write_bytes(whole)
    index_of(tiny, 7).unlink()
    assert fetched_step(tiny) == 6


def test_nothing_is_deleted_where_no_index_can_be_read(tiny: TinyRun) -> None:
    """A run that an earlier version of the trainer goes on with starts at 0."""
    write(tiny, [2, 4])
    for step in (2, 4):
        index_of(tiny, step).write_bytes(sealed({**json.loads(index_of(tiny, step).read_bytes()), "version": 2}))
    assert fetched_step(tiny) == newest_step(open_storage(), tiny.run.layout) == 0
    drop_checkpoints_beyond(open_storage(), tiny.run.layout, 0)
    write(tiny, [1], keep=1)
    assert steps_left(tiny) == [1, 2, 4]
    assert fetched_step(tiny) == 1
