"""One rank of a training run, read from top to bottom. Knows torch.distributed and DeepSpeed, and nothing of Ray."""

from __future__ import annotations

import logging

import torch

from cloister_api.errors import CloisterError
from cloister_api.events import EvaluationDone, FailureSeen
from cloister_api.reasons import FailureReason
from cloister_trainer.train import schedule
from cloister_trainer.train.checkpoint import fetch_newest
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.control import Control
from cloister_trainer.train.engine_state import restore
from cloister_trainer.train.failures import explain
from cloister_trainer.train.feed import BatchFeed
from cloister_trainer.train.finish import finish
from cloister_trainer.train.inputs import fetch_inputs
from cloister_trainer.train.messages import Ended, Phase
from cloister_trainer.train.metrics import drop_parts_beyond
from cloister_trainer.train.recorder import Recorder
from cloister_trainer.train.saver import Saver
from cloister_trainer.train.setup import build_engine, share
from cloister_trainer.train.state import TrainState, evaluation_due
from cloister_trainer.train.watchdog import Watchdog
from cloister_trainer.train.worker_logs import RankLog, upload_log

log = logging.getLogger(__name__)


def run_worker(context: WorkerContext) -> Ended:
    """Train until the end, an interruption or a failure. A failure is pushed to the sink, logged and raised.

    Raises CloisterError, whatever the cause was; the trace is in the rank's log.
    """
    rank_log = RankLog(context.log_path, context.rank)
    progress = TrainState()

    def store_log() -> None:
        upload_log(context.storage, context.log_path, context.run.layout.rank_log(context.attempt, context.rank))

    def fail(failure: CloisterError) -> None:
        store_log()
        context.sink.push(
            FailureSeen(
                reason=failure.reason,
                message=failure.message,
                step=failure.step or 0,
                node=failure.node or context.node,
            )
        )

    def stalled(seconds: float) -> None:
        rank_log.stacks()
        sentence = (
            f"Rank {context.rank} on {context.node} made no progress for {seconds:.0f} s after step {progress.step}. "
            f"The stacks of all ranks are in {context.run.layout.root}/attempts/{context.attempt}/logs."
        )
        fail(CloisterError(FailureReason.NO_PROGRESS, sentence, step=progress.step, node=context.node))

    def ended() -> None:
        rank_log.stacks()
        store_log()

    watchdog = Watchdog(context.run.spec.progress_deadline_seconds, context.sink, stalled, ended)
    try:
        return train(context, watchdog, progress)
    except BaseException as error:
        failure = explain(error, step=progress.step, node=context.node)
        log.error("%s: %s", failure.reason, failure.message)
        rank_log.trace(error)
        fail(failure)
        raise failure from None
    finally:
        watchdog.close()
        store_log()
        rank_log.close()


def train(context: WorkerContext, watchdog: Watchdog, state: TrainState) -> Ended:
    """The whole of training; `state` follows the steps."""
    run, plan, sink = context.run, context.plan, context.sink
    training, evaluation, is_first = run.spec.training, run.spec.evaluation, context.is_first

    # Where to go on: rank 0 looks, and tells the others.
    checkpoint = fetch_newest(context.storage, run, plan, context.scratch / "resume") if is_first else None
    state.take(share(checkpoint.index.state if checkpoint is not None else TrainState()))
    if is_first:
        drop_parts_beyond(context.storage, run.layout, state.step)

    # Weights and tokens, once per node; the model, the adapter and the engine.
    sink.push(Phase("Fetching the model and the tokens"))
    inputs = fetch_inputs(context, watchdog.beat)
    sink.push(Phase("Loading the model"))
    built = build_engine(context, inputs)
    engine = built.engine
    best = None
    if state.step > 0:
        log.info("Going on after step %d.", state.step)
        if checkpoint is not None:
            best = checkpoint.best_adapter()
            with checkpoint.tensors() as read:
                restore(engine, state.step, read, context.device)
        else:
            restore(engine, state.step, None, context.device)
    watchdog.beat()

    # Steps. What the clock or a signal asks for is agreed on by all ranks, one step later.
    feed = BatchFeed(inputs.train, training, plan.plan, context.rank, context.world_size, context.device)
    control = Control(context.world_size, context.device)
    saver = Saver(context, engine, state, best)
    recorder = Recorder(context, state, saver.metrics, plan.plan.total_steps)
    total_steps = plan.plan.total_steps

    def measure() -> None:
        from cloister_trainer.train.evaluate import evaluate

        loss = evaluate(built.module, inputs.validation, plan.plan, context, watchdog.beat)
        if state.record_evaluation(loss, evaluation.early_stopping) and evaluation.keep_best:
            saver.keep_best()
        if is_first:
            sink.push(EvaluationDone(step=state.step, loss=loss, base_loss=state.base_loss or loss))

    has_validation = inputs.validation is not None
    if state.step == 0 and has_validation:
        measure()
    while state.step < total_steps and not state.stopped_early:
        recorder.begin()
        batch = feed.get(state.step + 1)
        rate = schedule.learning_rate(batch.step, total_steps, training)
        loss_sum = torch.zeros((), device=context.device)
        for turn, micro_batch in enumerate(batch.micro_batches):
            built.module.set_position(batch.step, context.rank, turn)
            last = turn == len(batch.micro_batches) - 1
            loss_sum += engine.accumulate(micro_batch, batch.labels, last)
        control.post(batch.step, loss_sum, engine.step(rate), saver.wishes())
        recorder.made(batch, rate)
        state.step = batch.step
        watchdog.beat()

        measuring = has_validation and evaluation_due(state.step, total_steps, feed.steps_per_epoch, evaluation)
        wishes = recorder.settle(control, all_of_them=measuring)
        if measuring:
            measure()
        if wishes:
            wishes |= recorder.settle(control, all_of_them=True)
            saver.save()
        if wishes.interrupt or wishes.evict:
            saver.wait()
            return Ended("interrupted" if wishes.interrupt else "evicted", state.step)
    recorder.settle(control, all_of_them=True)
    feed.close()
    saver.save()
    saver.wait()

    # The end: checks on the trained model, and the adapter staged for publish.
    sink.push(Phase("Checking and staging the adapter"))
    finish(context, built, inputs, state, saver.best, watchdog.beat)
    return Ended("finished", state.step)
