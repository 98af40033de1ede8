"""Checkpoints on a file store: the newest complete one wins, and one that was cut short is never chosen."""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from cloister_api.errors import CloisterError
from cloister_api.events import Progress
from cloister_api.reasons import FailureReason
from cloister_api.run import StorageDefaults
from cloister_trainer.storage import Full, Storage, Unreachable, open_storage
from cloister_trainer.train import checkpoint
from cloister_trainer.train.checkpoint import CheckpointWriter, drop_checkpoints_beyond, fetch_newest, newest_step
from cloister_trainer.train.checkpoint_index import CheckpointIndex
from cloister_trainer.train.failures import explain
from cloister_trainer.train.messages import Ended
from cloister_trainer.train.state import TrainState
from support.tiny_checkpoints import fetched_step, tensors_of, write
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture
def tiny(tmp_path: Path, inputs: Path) -> TinyRun:
    return make_run(tmp_path, inputs=inputs)


def test_the_newest_is_chosen_and_only_the_newest_are_kept(tiny: TinyRun) -> None:
    assert (fetched_step(tiny), newest_step(open_storage(), tiny.run.layout)) == (0, 0)
    write(tiny, [5, 10, 100, 1_000_000], keep=2)
    assert fetched_step(tiny) == newest_step(open_storage(), tiny.run.layout) == 1_000_000
    assert sorted(path.name for path in tiny.stored("checkpoints").iterdir()) == ["step-000100", "step-1000000"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "index.json").write_text('{"version": 1, "step": 10'),
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: os.truncate(folder / "state.safetensors", 100),
        lambda folder: (folder / "state.safetensors").write_bytes(
            (folder / "state.safetensors").read_bytes()[:-1] + b"\x7f"
        ),
        lambda folder: (folder / "best.safetensors").unlink(),
    ],
    ids=["no index", "half an index", "no state", "short state", "changed state", "no best adapter"],
)
def test_one_that_was_cut_short_is_never_chosen(tiny: TinyRun, damage: Callable[[Path], object]) -> None:
    write(tiny, [5, 10], best=3)
    damage(tiny.stored("checkpoints/step-000010"))
    assert fetched_step(tiny) == 5


CHECKPOINT_FILES = ("index.json", "state.safetensors", "best.safetensors")


def borders(content: bytes) -> set[int]:
    """Where a safetensors file's header and tensors begin and end."""
    size, start = len(content), 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return {0, 1, 8, start, size, *(start + border for entry in header.values() for border in entry["data_offsets"])}


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_one_cut_at_any_byte_or_changed_in_any_is_never_chosen(tiny: TinyRun, name: str) -> None:
    write(tiny, [5, 10], best=3)
    path = tiny.stored(f"checkpoints/step-000010/{name}")
    sound, rng = path.read_bytes(), random.Random(name)
    at_borders = range(65) if name == "index.json" else borders(sound)
    cuts = {border + by for border in at_borders for by in (-1, 0, 1)} | {0, len(sound) - 1}
    cuts = {cut for cut in cuts if 0 <= cut < len(sound)} | set(rng.sample(range(len(sound)), min(len(sound), 60)))
    for cut in sorted(cuts):
        path.write_bytes(sound[:cut])
        assert fetched_step(tiny) == 5, f"{name} cut after {cut} of {len(sound)} bytes"
    for place in sorted(rng.sample(range(len(sound)), min(len(sound), 90))):
        changed = sound[place] ^ 1 << rng.randrange(8)
        path.write_bytes(sound[:place] + bytes([changed]) + sound[place + 1 :])
        assert fetched_step(tiny) == 5, f"byte {place} of {name} is {changed} instead of {sound[place]}"
    path.write_bytes(sound)
    assert fetched_step(tiny) == 10


def test_the_newest_is_that_of_the_highest_step_whatever_the_clock_said(tiny: TinyRun) -> None:
    """The clock stood a year ahead when the older ones were written, and an hour of it came twice."""
    write(tiny, [8, 9, 10])
    for step, seconds in ((8, 4e8), (9, 3e8), (10, 0)):
        for path in tiny.stored(f"checkpoints/step-{step:06d}").iterdir():
            os.utime(path, (seconds, seconds))
    assert fetched_step(tiny) == newest_step(open_storage(), tiny.run.layout) == 10
    write(tiny, [11], keep=2)
    assert sorted(path.name for path in tiny.stored("checkpoints").iterdir()) == ["step-000010", "step-000011"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_it_holds_adapter_and_optimizer_and_nothing_of_the_base(tmp_path: Path, inputs: Path, stage: int) -> None:
    """12 bytes for each trainable parameter, whatever the stage and the number of ranks, and a few kB of words."""
    tiny = make_run(tmp_path, inputs=inputs, workers=2, stage=stage, steps=2)
    assert run_ranks(tiny, 2).end() == Ended("finished", 2)
    adapter = load(tiny.adapter())
    trainable = sum(tensor.numel() for tensor in adapter.values())
    files = {path.name: path for path in tiny.stored("checkpoints/step-000002").iterdir()}
    assert set(files) == {"index.json", "state.safetensors"}
    assert 12 * trainable < sum(path.stat().st_size for path in files.values()) < 12 * trainable + 16 * 1024
    state = load_file(files["state.safetensors"])
    assert sum(tensor.nbytes for tensor in state.values()) == 12 * trainable
    assert len(state) == 3 * len(adapter)
    assert all(torch.equal(state[name], tensor) for name, tensor in adapter.items())


def test_no_decision_of_training_asks_the_wall_clock() -> None:
    """A clock that jumps can make nothing late, stale or newest: it is read for a name and for what people read."""
    wall_clock = re.compile(
        r"\btime\.(?:time|time_ns|localtime|gmtime)\b|\b(?:now|utcnow|today)\(|from time import|st_mtime"
    )
    readers = [
        (path.stem, line.strip())
        for path in Path(checkpoint.__file__).parent.glob("*.py")
        for line in path.read_text().splitlines()
        if wall_clock.search(line)
    ]
    assert sorted(readers) == [
        ("launch", 'return f"{self.run.uid}-{self.attempt}-{time.time_ns()}-{self.ordinal}"'),
        ("recorder", 'time=datetime.now(UTC).isoformat(timespec="milliseconds"),'),
    ]


def test_going_on_from_an_older_one_drops_the_damaged_ones_after_it(tiny: TinyRun) -> None:
    """Else a damaged one would count as the newest, and the next that is written would be pruned as too old."""
    write(tiny, [2, 4, 6])
    tiny.stored("checkpoints/step-000006/state.safetensors").write_bytes(b"short")
    assert fetched_step(tiny) == 4
    drop_checkpoints_beyond(open_storage(), tiny.run.layout, 4)
    assert newest_step(open_storage(), tiny.run.layout) == 4
    write(tiny, [5], keep=1)
    assert fetched_step(tiny) == 5


def test_the_best_adapter_comes_with_it(tiny: TinyRun) -> None:
    write(tiny, [5, 10], best=5)
    found = fetch_newest(open_storage(), tiny.run, tiny.plan, tiny.root / "fetched")
    assert found is not None
    best = found.best_adapter()
    assert best is not None and set(best) == {"a"} and float(best["a"][0, 0]) == -1
    tiny.stored("checkpoints/step-000010/index.json").unlink()
    found = fetch_newest(open_storage(), tiny.run, tiny.plan, tiny.root / "fetched")
    assert found is not None
    best = found.best_adapter()
    assert best is not None and set(best) == {"a"} and float(best["a"][0, 0]) == 5


def test_resume_from_another_run_needs_the_same_settings(tmp_path: Path, inputs: Path, tiny: TinyRun) -> None:
    write(tiny, [5])
    resume: dict[str, Any] = {"resumeFrom": {"uri": tiny.run.layout.root}}
    follower = make_run(tmp_path / "follower", inputs=inputs, steps=50, **resume)
    assert fetched_step(follower) == 5
    other = make_run(tmp_path / "other", inputs=inputs, training={"globalBatchSize": 4}, lora={"rank": 8}, **resume)
    with pytest.raises(CloisterError) as refusal:
        fetched_step(other)
    assert refusal.value.reason is FailureReason.SPEC_INVALID
    assert "lora, training.globalBatchSize" in refusal.value.message
    write(follower, [7])
    assert fetched_step(follower) == 7


class FailingStorage(Storage):
    """The real store, until it is told to fail."""

    failure: CloisterError | None = None

    def upload(self, path: Path, uri: str) -> None:
        if self.failure is not None:
            raise self.failure
        super().upload(path, uri)


def test_a_store_that_is_away_costs_a_checkpoint_and_a_full_one_ends_the_run(tiny: TinyRun) -> None:
    storage = FailingStorage(StorageDefaults(), os.environ)
    writer = CheckpointWriter(storage, tiny.run.layout, 2, tiny.root / "writing")
    complete = threading.Event()

    def save(step: int) -> None:
        index = CheckpointIndex(step=step, settings={}, files=[], state=TrainState(step=step))
        part = (tiny.run.layout.metrics_part(step), b"{}\n")
        writer.make_ready()
        writer.write(index, tensors_of(step), None, part, lambda _uri: complete.set())

    storage.failure = Unreachable("The store does not answer.")
    save(1)
    with pytest.raises(Unreachable):
        writer.wait()
    save(2)
    storage.failure = None
    save(3)
    writer.wait()
    assert complete.is_set()
    assert newest_step(storage, tiny.run.layout) == 3
    storage.failure = Full("The store is full.")
    save(4)
    with pytest.raises(Full):
        save(5)
    writer.close()


def test_a_full_scratch_disk_is_the_local_disk_s_and_leaves_no_file(tiny: TinyRun, small_disk: Path) -> None:
    writer = CheckpointWriter(open_storage(), tiny.run.layout, 2, small_disk / "writing")
    index = CheckpointIndex(step=1, settings={}, files=[], state=TrainState(step=1))
    part = (tiny.run.layout.metrics_part(1), b"{}\n")
    writer.write(index, {"a": torch.zeros(1024, 1024)}, None, part, lambda _uri: None)
    with pytest.raises(Exception, match="No space left") as full:
        writer.wait()
    writer.close()
    failure = explain(full.value, step=1, node="node-3")
    assert failure.reason is FailureReason.LOCAL_DISK_FULL
    assert "ephemeral storage" in failure.message
    assert list(small_disk.iterdir()) == []
    assert newest_step(open_storage(), tiny.run.layout) == 0


def test_a_disk_that_fills_up_under_a_run_is_named_and_costs_not_a_bit(
    tmp_path: Path, inputs: Path, small_disk: Path
) -> None:
    constant = {"scheduler": "Constant", "warmupRatio": 0}
    settings: dict[str, Any] = {"inputs": inputs, "training": constant, "checkpoint": {"interval": "0s"}}
    filler = (small_disk / "filler").open("wb", buffering=0)

    def fill(message: Any, _act: Callable[[str], None]) -> None:
        if isinstance(message, Progress) and message.step >= 5:
            with suppress(OSError):
                while True:
                    filler.write(bytes(512))

    out = {"uri": (tmp_path / "out").as_uri()}
    stopped = make_run(small_disk, output=out, steps=5000, **settings)
    with filler, pytest.raises(CloisterError) as full:
        run_ranks(stopped, watch=fill).end()
    assert full.value.reason is FailureReason.LOCAL_DISK_FULL
    made = newest_step(open_storage(), stopped.run.layout)
    assert 0 < made < 5000
    (small_disk / "filler").unlink()
    going_on = make_run(small_disk, output=out, steps=made + 3, **settings)
    assert run_ranks(going_on).end() == Ended("finished", made + 3)
    whole = make_run(tmp_path / "whole", steps=made + 3, **settings)
    run_ranks(whole).end()
    assert going_on.adapter() == whole.adapter()
