"""The parts of a run that need no engine: evaluation times, best and early stopping, control, failures, figures."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError

from cloister_api.errors import CloisterError
from cloister_api.events import EvaluationDone, Progress
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import EarlyStopping, Evaluation
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Unreachable, open_storage
from cloister_trainer.train.control import Control, Wishes
from cloister_trainer.train.failures import explain, worst
from cloister_trainer.train.messages import Phase
from cloister_trainer.train.metrics import MetricsBuffer, MetricsRow, drop_parts_beyond, take_parts_of
from cloister_trainer.train.progress import Display, evaluation_sentence, figures
from cloister_trainer.train.state import TrainState, evaluation_due
from cloister_trainer.train.worker_logs import UPLOADED_BYTES, RankLog, upload_left_logs, upload_log
from support.tiny_run import make_run


def due(evaluation: Evaluation, total: int, steps_per_epoch: int) -> list[int]:
    return [step for step in range(total + 1) if evaluation_due(step, total, steps_per_epoch, evaluation)]


def test_evaluations_come_at_steps_at_epochs_and_at_both_ends() -> None:
    assert due(Evaluation(), total=10, steps_per_epoch=4) == [0, 4, 8, 10]
    assert due(Evaluation(every_steps=3), total=10, steps_per_epoch=4) == [0, 3, 4, 6, 8, 9, 10]
    assert due(Evaluation(every_epochs=0.5), total=7, steps_per_epoch=3) == [0, 2, 3, 5, 6, 7]
    assert due(Evaluation(every_epochs=0.1), total=3, steps_per_epoch=3) == [0, 1, 2, 3]


def record(losses: list[float], stopping: EarlyStopping | None) -> TrainState:
    state = TrainState()
    for step, loss in enumerate(losses):
        state.step = step
        state.record_evaluation(loss, Evaluation(early_stopping=stopping))
    return state


def test_the_best_is_the_lowest_of_what_was_trained() -> None:
    state = record([1.0, 3.0, 2.0, 2.5], None)
    assert (state.base_loss, state.best_step, state.best_loss, state.stopped_early) == (1.0, 2, 2.0, False)


def test_early_stopping_counts_evaluations_without_a_fall() -> None:
    patience = EarlyStopping(patience=2)
    assert not record([4.0, 3.0, 3.5, 2.9, 3.0], patience).stopped_early
    assert record([4.0, 3.0, 3.5, 3.0], patience).stopped_early
    assert record([4.0, 3.95, 3.91], EarlyStopping(patience=2, min_delta=0.1)).stopped_early
    assert not record([4.0, 3.95, 3.85], EarlyStopping(patience=2, min_delta=0.1)).stopped_early


def test_the_state_survives_its_index() -> None:
    state = record([1.0, 3.0, 2.0], EarlyStopping())
    again = TrainState()
    again.take(TrainState.model_validate_json(state.model_dump_json(by_alias=True)))
    assert again == state


def test_control_reads_a_step_after_it_was_posted() -> None:
    control = Control(world_size=1, device=torch.device("cpu"))
    control.post(7, torch.tensor(2.5), torch.tensor(0.5), Wishes(checkpoint=True))
    control.post(8, torch.tensor(float("nan")), 0.25, Wishes(evict=True))
    assert len(control) == 2
    result = control.read()
    assert (result.step, result.loss_sum, result.grad_norm, result.wishes) == (7, 2.5, 0.5, Wishes(checkpoint=True))
    assert control.read().wishes == Wishes(evict=True)
    assert Wishes(checkpoint=True) | Wishes(interrupt=True) == Wishes(checkpoint=True, interrupt=True)
    assert not Wishes()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), FailureReason.GPU_OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), FailureReason.OUT_OF_MEMORY),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (RuntimeError("[gloo/pair.cc] Connection closed by peer [127.0.0.1]:1"), FailureReason.WORKERS_LOST),
        (RuntimeError("Timed out waiting 1800000ms for recv operation"), FailureReason.COLLECTIVE_TIMEOUT),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), FailureReason.GPU_FAULT),
        (OSError(errno.ENOSPC, "No space left on device"), FailureReason.LOCAL_DISK_FULL),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), FailureReason.LOCAL_DISK_FULL),
        (SafetensorError("I/O error: Input/output error (os error 5)"), FailureReason.INTERNAL),
        (Unreachable("s3://b does not answer."), FailureReason.STORAGE_UNAVAILABLE),
        (KeyError("a row's content"), FailureReason.INTERNAL),
    ],
)
def test_what_libraries_raise_gets_a_reason_and_a_sentence(error: Exception, reason: FailureReason) -> None:
    failure = explain(error, step=12, node="node-3")
    assert (failure.reason, failure.step, failure.node) == (reason, 12, "node-3")
    assert "a row's content" not in failure.message
    assert failure.message.endswith((".", ".)"))


def test_the_cause_explains_better_than_its_consequences() -> None:
    lost = CloisterError(FailureReason.WORKERS_LOST, "Another worker ended.")
    diverged = CloisterError(FailureReason.LOSS_DIVERGED, "The loss is not a number.")
    assert worst([lost, diverged, lost]) is diverged
    assert worst([lost]) is lost


def row(step: int) -> MetricsRow:
    return MetricsRow(step, step / 4, 1.0, 0.5, 1e-4, 10.0, 5.0, 0.1, 1000, "2026-01-01T00:00:00+00:00")


def test_metrics_lie_in_parts_that_end_at_checkpoints(tmp_path: Path) -> None:
    tiny = make_run(tmp_path)
    storage, layout = open_storage(), tiny.run.layout
    metrics = MetricsBuffer(layout, last_stored_step=0)
    for step in (1, 2, 3):
        metrics.add(row(step))
    storage.write(*metrics.part())
    metrics.add(row(4))
    metrics.stored(3)
    assert storage.write(*metrics.part())
    assert [row["step"] for row in tiny.metrics()] == [1, 2, 3, 4]
    assert {"gradNorm", "tokensPerSecond", "trainedTokensPerSecond", "paddingShare", "time"} <= set(tiny.metrics()[0])
    drop_parts_beyond(storage, layout, 3)
    assert [row["step"] for row in tiny.metrics()] == [1, 2, 3]

    other = make_run(tmp_path / "other")
    take_parts_of(storage, layout.root, other.run.layout, step=2)
    assert [row["step"] for row in other.metrics()] == [1, 2]


def test_a_log_s_end_is_stored_also_of_a_rank_that_could_not(tmp_path: Path) -> None:
    tiny = make_run(tmp_path)
    storage, layout = open_storage(), tiny.run.layout
    own = RankLog(tmp_path / "logs" / "rank-00.log", 0)
    own.file.write("x" * UPLOADED_BYTES)
    own.trace(ValueError("why"))
    own.close()
    upload_log(storage, own.path, layout.rank_log(2, 0))
    stored = tiny.stored("attempts/2/logs/rank-00.log").read_text()
    assert len(stored) == UPLOADED_BYTES and stored.endswith("ValueError: why\n")

    (tmp_path / "logs" / "rank-01.log").write_text("killed\n")
    tiny.stored("attempts/2/logs/rank-00.log").unlink()
    upload_left_logs(storage, tmp_path / "logs", tiny.run, 2)
    assert [path.name for path in tiny.stored("attempts/2/logs").iterdir()] == ["rank-01.log"]


def test_a_terminal_sees_step_loss_speed_and_time_left() -> None:
    event = Progress(
        step=3, total_steps=9, epoch=0.5, loss=1.23456, learning_rate=1e-4, tokens_per_second=1234.5, eta_seconds=200
    )
    assert figures(event) == "loss 1.2346  1,234 tokens/s  3m20s left"
    assert figures(event.model_copy(update={"eta_seconds": 7320})).endswith("2h02m left")
    base = EvaluationDone(step=0, loss=2.0, base_loss=2.0)
    assert evaluation_sentence(base) == "Validation loss of the base model: 2.0000"
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    with Display(Reporter(console), 9) as display:
        display.show(Phase("Loading the model"))
        display.show(event)
        display.show(base)
    shown = console.export_text()
    assert "Step 3/9" in shown and "3m20s left" in shown and "base model: 2.0000" in shown
