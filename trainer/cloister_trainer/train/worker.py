"""One rank of a training run, read from top to bottom. Knows torch.distributed and DeepSpeed, and nothing of Ray."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial

import torch

from cloister_api.errors import CloisterError
from cloister_api.events import EvaluationDone, FailureSeen
from cloister_api.reasons import FailureReason
from cloister_trainer.train import schedule
from cloister_trainer.train.checkpoint import Checkpoint, drop_checkpoints_beyond, fetch_newest
from cloister_trainer.train.checks import SelfTests, validation_loss
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.control import Control
from cloister_trainer.train.engine_state import restore
from cloister_trainer.train.failures import explain
from cloister_trainer.train.feed import BatchFeed, StepBatch
from cloister_trainer.train.finish import finish
from cloister_trainer.train.inputs import Inputs, fetch_inputs
from cloister_trainer.train.messages import Ended, Phase, Warned
from cloister_trainer.train.metrics import drop_parts_beyond, reset_peak_memory, take_parts_of
from cloister_trainer.train.patience import Patience
from cloister_trainer.train.recorder import Recorder
from cloister_trainer.train.saver import Saver
from cloister_trainer.train.setup import Built, build, found_by_first, plan_again, prove_egress_of_all
from cloister_trainer.train.state import TrainState, evaluation_due
from cloister_trainer.train.stepping import announce
from cloister_trainer.train.watchdog import Watchdog
from cloister_trainer.train.worker_logs import RankLog, upload_log

log = logging.getLogger(__name__)


def run_worker(context: WorkerContext) -> Ended:
    """Train until the end, an interruption or a failure. A failure is pushed to the sink, logged and raised.

    Raises CloisterError, whatever the cause was; the trace is in the rank's log.
    """
    rank_log = RankLog(context.log_path, context.rank)
    state = TrainState()

    log_uri = context.run.layout.rank_log(context.attempt, context.rank)

    def store_log() -> None:
        upload_log(context.storage, context.log_path, log_uri)

    def fail(error: BaseException) -> CloisterError:
        failure = explain(error, step=state.step, node=context.node)
        log.error("%s: %s", failure.reason, failure.message)
        store_log()
        message = FailureSeen(
            reason=failure.reason, message=failure.message, step=failure.step or 0, node=failure.node or context.node
        )
        context.sink.push(message)
        return failure

    def stalled(seconds: float) -> None:
        rank_log.stacks()
        fail(
            CloisterError(
                FailureReason.NO_PROGRESS,
                f"Rank {context.rank} on {context.node} made no progress for {seconds:.0f} s after step {state.step}. "
                f"Its stacks are in {log_uri}, those of the other ranks beside it.",
            )
        )

    def aborted() -> None:
        rank_log.stacks()
        store_log()

    deadline_s = context.run.spec.progress_deadline_seconds
    with Watchdog(deadline_s, context.sink, on_stall=stalled, on_abort=aborted) as watchdog:
        try:
            return train(context, watchdog, state)
        except Exception as error:  # noqa: BLE001  (whatever it is, it gets a reason and a log)
            rank_log.trace(error)
            raise fail(error) from None
        finally:
            store_log()
            rank_log.close()


def train(context: WorkerContext, watchdog: Watchdog, state: TrainState) -> Ended:
    """The whole of training; `state` follows the steps."""
    run, sink = context.run, context.sink

    def say(what: str) -> None:
        watchdog.beat()
        if context.is_first:
            sink.push(Phase(what))

    def waiting_for_store(tell: Callable[[], None] = lambda: None) -> Patience:
        return Patience(partial(wait_for_store, context, watchdog, tell))

    egress = prove_egress_of_all(context)

    # Where to go on: rank 0 looks, and tells the others.
    checkpoint: Checkpoint | None = None

    def look(tell: Callable[[], None]) -> TrainState:
        nonlocal checkpoint
        resume = context.scratch / "resume"
        checkpoint = waiting_for_store(tell).call(lambda: fetch_newest(context.storage, run, context.plan, resume))
        return checkpoint.index.state if checkpoint is not None else TrainState()

    state.take(found_by_first(context, look, watchdog.beat))
    if context.is_first:
        if checkpoint is not None and checkpoint.run_folder != run.layout.root:
            take_parts_of(context.storage, checkpoint.run_folder, run.layout, state.step)
        drop_parts_beyond(context.storage, run.layout, state.step)
        drop_checkpoints_beyond(context.storage, run.layout, state.step)

    # Weights and tokens, once per node; the base model, the adapter, the engine, and what the checkpoint holds.
    say("Fetching the model and the tokens")
    inputs = fetch_inputs(context, watchdog.beat)
    say("Loading the model")
    context = plan_again(context, inputs, state)
    built = build(context, inputs, watchdog.beat)
    if state.step > 0:
        restore_checkpoint(context, built, checkpoint, state.step)
    best = None
    if checkpoint is not None:  # on rank 0 only
        best = checkpoint.best_adapter()
        shutil.rmtree(checkpoint.folder)

    say("Checking the model")
    tests = SelfTests(context, built, state)
    tests.at_start(inputs.train, context.plan.plan)
    watchdog.beat()
    reset_peak_memory(context.device)

    announce(context.scratch)
    with Saver(context, built.engine, state, best) as saver:
        stopped = make_steps(context, built, inputs, state, saver, tests, watchdog)
        if stopped is not None:
            saver.wait(waiting_for_store())  # the others may have to go at once
            return stopped
        found_by_first(context, lambda tell: saver.wait(waiting_for_store(tell)), watchdog.beat)

    # The end: checks on the trained model, and the adapter staged for publish.
    say("Checking and staging the adapter")
    tests.at_end()
    finish(context, built, inputs, state, saver.best, egress, waiting_for_store(), watchdog.beat)
    return Ended("finished", state.step)


def wait_for_store(
    context: WorkerContext, watchdog: Watchdog, tell: Callable[[], None], failure: CloisterError, seconds: float
) -> None:
    """Pause once, beating; the log and the driver hear why."""
    why = f"{failure} Waiting {seconds:.0f} s for the store."
    log.warning(why)
    context.sink.push(Warned(why))
    tell()
    time.sleep(seconds)
    watchdog.beat()


def make_steps(
    context: WorkerContext,
    built: Built,
    inputs: Inputs,
    state: TrainState,
    saver: Saver,
    tests: SelfTests,
    watchdog: Watchdog,
) -> Ended | None:
    """Steps with their evaluations and checkpoints, up to the end (None) or a stop that was asked for."""
    training, evaluation, plan = context.run.spec.training, context.run.spec.evaluation, context.plan.plan
    control = Control(context.world_size, context.device)
    recorder = Recorder(context, state, saver.metrics, plan.total_steps)

    def measure() -> None:
        if inputs.validation is None:
            return
        loss = validation_loss(context, built, inputs.validation, plan, state.step, watchdog.beat)
        if state.record_evaluation(loss, evaluation):
            saver.keep_best()
        if context.is_first:
            base_loss = loss if state.base_loss is None else state.base_loss
            context.sink.push(EvaluationDone(step=state.step, loss=loss, base_loss=base_loss))

    if state.step == 0:
        measure()
    with BatchFeed(inputs.train, training, plan, context.rank, context.world_size, context.device) as feed:
        while state.step < plan.total_steps and not state.stopped_early:
            recorder.begin()
            batch = feed.get(state.step + 1)
            rate = schedule.learning_rate(batch.step, plan.total_steps, training)
            loss_sum = accumulate(context, built, batch, watchdog)
            # What the clock or a signal asks for is agreed on by all ranks, and known one step later, or now that
            # steps are slow: whoever asked may have no time for another step.
            control.post(batch.step, loss_sum, built.engine.step(rate), saver.wishes())
            recorder.made(batch, rate)
            state.step = batch.step
            watchdog.beat()

            measuring = evaluation_due(state.step, plan.total_steps, feed.steps_per_epoch, evaluation)
            wishes = recorder.settle(control, all_of_them=measuring or recorder.slow)
            tests.after_step()
            if measuring:
                measure()
            if wishes:
                wishes |= recorder.settle(control, all_of_them=True)
                saver.save()
            if wishes.interrupt or wishes.evict:
                return Ended("interrupted" if wishes.interrupt else "evicted", state.step)
    recorder.settle(control, all_of_them=True)
    saver.save()
    return None


def accumulate(context: WorkerContext, built: Built, batch: StepBatch, watchdog: Watchdog) -> torch.Tensor:
    """Gradients of one global batch; returns this rank's summed loss, float32 [] on the device."""
    loss_sum = torch.zeros((), device=context.device)
    for turn, micro_batch in enumerate(batch.micro_batches):
        built.module.set_position(batch.step, context.rank, turn)
        last = turn == len(batch.micro_batches) - 1
        loss_sum += built.engine.accumulate(micro_batch, batch.labels, last)
        watchdog.beat()
    return loss_sum


def restore_checkpoint(context: WorkerContext, built: Built, checkpoint: Checkpoint | None, step: int) -> None:
    """Adapter and moments from rank 0's checkpoint on all ranks. A collective."""
    log.info("Going on after step %d.", step)
    if checkpoint is None:
        restore(built.engine, step, None, context.device)
        return
    with checkpoint.tensors() as read:
        restore(built.engine, step, read, context.device)
