"""The three steps as a cluster's pods and `cloister run` call them, with what each reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.events import Event, FailureSeen, Progress, format_event
from cloister_api.run import ATTEMPT_ENVIRONMENT, Run
from cloister_trainer.egress import prove_egress
from cloister_trainer.reporter import Reporter, discard_output
from cloister_trainer.storage import Full, Storage, open_storage
from cloister_trainer.storage.os_errors import translate_os_error
from cloister_trainer.workspace import Workspace

SIGNING_KEY_ENVIRONMENT = "CLOISTER_SIGNING_KEY"


@dataclass(frozen=True)
class StepContext:
    """What every step works with."""

    run: Run
    storage: Storage
    reporter: Reporter
    workspace: Workspace
    attempt: int = 1
    signing_key: Path | None = None
    """The private key that publish signs with."""
    lines: bool = field(default_factory=lambda: not sys.stdout.isatty())
    """Whether train writes event lines to standard output."""

    @classmethod
    def of(cls, run: Run, reporter: Reporter, environ: Mapping[str, str] = os.environ) -> StepContext:
        """The context that a pod's or a shell's environment describes."""
        key = environ.get(SIGNING_KEY_ENVIRONMENT)
        return cls(
            run=run,
            storage=open_storage(run.settings.storage, environ),
            reporter=reporter,
            workspace=Workspace.of_environment(environ),
            attempt=int(environ.get(ATTEMPT_ENVIRONMENT, "1")),
            signing_key=Path(key) if key else None,
        )


def prepare_step(context: StepContext) -> dict[str, Any]:
    """Check, tokenise and plan; the result is what status shows of it, with this step's egress proof."""
    from cloister_trainer.prepare.main import prepare
    from cloister_trainer.publish.check import Reused
    from cloister_trainer.train.staged import completed_checks

    egress = prove_egress(context.run)
    with full_disk_named(context):
        found = prepare(
            context.run, context.storage, context.reporter, context.workspace, context.signing_key, egress=egress
        )
    if isinstance(found, Reused):
        evaluation = found.sealed.manifest.checks.evaluation.to_api()
        return {
            "reused": found.output.to_api(),
            "message": found.message,
            "evaluation": evaluation,
            "egress": egress,
        }
    plan, data = found.plan, found.data
    return {
        **({"staged": True} if completed_checks(context.run, context.storage) is not None else {}),
        "plan": {
            "zeroStage": plan.zero_stage,
            "microBatchTokens": plan.micro_batch_tokens,
            "gradientCheckpointing": plan.gradient_checkpointing,
            "totalSteps": plan.total_steps,
            "trainableParameters": plan.trainable_parameters,
            "baseParameters": found.model.base_parameters,
            "examples": data.epoch_examples,
            "tokens": data.epoch_tokens,
            "trainedTokens": data.epoch_trained_tokens,
            "estimatedGpuMemoryBytes": sum(part.bytes for part in plan.gpu_memory),
            "warnings": plan.warnings[:8],
        },
        "license": found.model.license.model_dump(include={"id", "evidence", "file", "sha256"}, exclude_none=True),
        "egress": egress,
    }


def train_step(context: StepContext) -> dict[str, Any]:
    """Train and stage the adapter; event lines tell progress and, at the end, the failure."""
    from cloister_trainer.prepare.main import require_plan
    from cloister_trainer.train.driver import train

    emit = EventWriter(context)
    scratch = context.workspace.run(context.run.uid)
    try:
        egress = prove_egress(context.run)
        plan = require_plan(context.run, context.storage)
        with full_disk_named(context):
            checks = train(context.run, plan, context.storage, context.reporter, scratch, emit, egress)
    except CloisterError as error:
        emit(
            FailureSeen(
                reason=error.reason,
                message=error.message,
                step=emit.step if error.step is None else error.step,
                node=error.node or os.uname().nodename,
            )
        )
        raise
    return {"step": checks.step, "loss": checks.loss, "baseLoss": checks.base_loss}


def publish_step(context: StepContext) -> dict[str, Any]:
    """Verify and publish the staged adapter; the result is status.output and status.evaluation, and all egress proofs.

    A gate that was not reached has the last two as its error's result.
    """
    from cloister_trainer.prepare.main import require_plan
    from cloister_trainer.publish.main import publish

    egress = prove_egress(context.run)
    with full_disk_named(context):
        published = publish(
            context.run,
            require_plan(context.run, context.storage),
            context.storage,
            context.reporter,
            context.workspace.run(context.run.uid) / "publish",
            context.signing_key,
            egress=egress,
        )
    return published.result()


def check_step(context: StepContext) -> dict[str, Any]:
    """publish's early check: the output can be written, and the key loads."""
    from cloister_trainer.publish.check import check_output

    prove_egress(context.run)
    check_output(context.run, context.storage, None, context.signing_key)
    return {}


@contextmanager
def full_disk_named(context: StepContext) -> Iterator[None]:
    """A full local disk is LocalDiskFull, wherever the step met it; every other error of the system stays."""
    try:
        yield
    except OSError as error:
        named = translate_os_error(error, str(error.filename or context.workspace.root), "writing")
        if not isinstance(named, Full):
            raise
        raise named from error


class EventWriter:
    """Writes event lines and remembers the newest step."""

    def __init__(self, context: StepContext) -> None:
        self.step = 0
        self._context = context

    def __call__(self, event: Event) -> None:
        """Take an event from train."""
        if isinstance(event, Progress):
            self.step = event.step
        if self._context.lines:
            line = format_event(self._context.run.uid, self._context.attempt, datetime.now(UTC), event)
            try:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                discard_output(sys.stdout)


STEPS: dict[str, Callable[[StepContext], dict[str, Any]]] = {
    "prepare": prepare_step,
    "train": train_step,
    "publish": publish_step,
}
