"""`cloister run`: the three steps one after another on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.exit_codes import ExitCode, exit_code_for
from cloister_api.reasons import FailureReason
from cloister_api.spec_cluster import Hold
from cloister_trainer.cli.local import find_run, load_one_job, local_run, local_storage, on_this_machine
from cloister_trainer.interrupt import how_to_go_on
from cloister_trainer.reporter import Reporter
from cloister_trainer.steps import StepContext, prepare_step, publish_step, train_step
from cloister_trainer.workspace import Workspace


def execute(options: argparse.Namespace, reporter: Reporter) -> int:
    """Prepare, train, publish; a second call with the same inputs goes on where the first one ended."""
    started = time.monotonic()
    job = load_one_job(options.job)
    if job.spec.suspend:
        raise CloisterError(
            FailureReason.SPEC_INVALID, f"{options.job}: spec.suspend is true. Set it to false to run the job."
        )
    storage = local_storage()
    first = local_run(job, on_this_machine(job.spec, reporter), storage)
    run = find_run(first, storage, fresh=options.fresh)
    scratch = Workspace.of_environment().run(run.uid)
    if options.fresh:
        storage.delete_prefix(run.layout.root)
        shutil.rmtree(scratch, ignore_errors=True)
    if run != first:
        reporter.say(f"The adapter published from the same inputs stays at {first.output.folder}.")
    context = dataclasses.replace(StepContext.of(run, reporter), storage=storage)
    if options.signing_key is not None:
        context = dataclasses.replace(context, signing_key=options.signing_key)
    reporter.say(f"Run {run.uid} of job {run.name}: data in {run.layout.root}")

    prepared = prepare_step(context)
    if "reused" in prepared:
        shutil.rmtree(scratch, ignore_errors=True)
        reporter.result(f"AlreadyPublished: {prepared['message']}")
        return ExitCode.DONE
    describe_plan(prepared["plan"], reporter)
    if run.spec.hold is Hold.BEFORE_TRAINING:
        reporter.say(f"Held before training (spec.hold). Remove spec.hold, then {how_to_go_on(fresh=options.fresh)}")
        return ExitCode.DONE
    try:
        train_step(context)
        output = publish_step(context)["output"]
    except CloisterError as error:
        reporter.fail(error.reason, error.message)
        return exit_code_for(error.reason, data_was_read=True)
    shutil.rmtree(scratch, ignore_errors=True)
    reporter.result(f"Published {output['uri']}")
    reporter.say(f"Done in {time.monotonic() - started:.0f} s. Check it: cloister verify {run.spec.output.uri}")
    return ExitCode.DONE


def describe_plan(plan: dict[str, Any], reporter: Reporter) -> None:
    """The plan in one line."""
    reporter.say(
        f"{plan['examples']:,} examples, {plan['tokens']:,} tokens an epoch, {plan['trainedTokens']:,} trained; "
        f"{plan['totalSteps']:,} steps; {plan['trainableParameters']:,} of {plan['baseParameters']:,} parameters; "
        f"ZeRO stage {plan['zeroStage']}, micro-batches of {plan['microBatchTokens']:,} tokens."
    )
