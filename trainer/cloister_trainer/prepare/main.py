"""prepare: check everything that can be checked without a GPU, tokenise, and plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.reuse import reuse_key
from cloister_api.run import Run
from cloister_api.spec_cluster import IfExists
from cloister_trainer.model.complete import check_complete
from cloister_trainer.model.folder import InspectedModel, inspect_model
from cloister_trainer.model.plan import build_train_plan
from cloister_trainer.model.settings import check_before_data
from cloister_trainer.prepare.data import prepare_tokens
from cloister_trainer.prepare.initial_adapter import adapter_fingerprint, check_initial_adapter
from cloister_trainer.prepare.job import read_chat_template
from cloister_trainer.prepare.take_over import take_over
from cloister_trainer.publish.base_files import CHAT_TEMPLATE
from cloister_trainer.publish.check import Reused, check_output
from cloister_trainer.publish.cleanup import Clock, clean_up, utc_now
from cloister_trainer.publish.digests import digest_bytes
from cloister_trainer.records import PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import MissingObject, Storage
from cloister_trainer.workspace import Workspace


def prepare(
    run: Run,
    storage: Storage,
    reporter: Reporter,
    workspace: Workspace,
    signing_key: Path | None,
    *,
    egress: Mapping[str, Any] | None = None,
    clock: Clock = utc_now,
) -> PlanFile | Reused:
    """Leave tokens, plan.json and run.json in the run folder, or find that the adapter exists already.

    A prepared run is not prepared again: plan.json is written last. Where the adapter exists, no later step is run:
    what publish would delete is deleted here, also for this run's own adapter whose clean-up was cut short. `egress`
    is prepare's own proof.

    Raises CloisterError for every mistake that can be seen before a device is taken.
    """
    if (published := check_output(run, storage, None, signing_key)) is not None:
        if published.uid == run.uid and (done := read_plan(run, storage)) is not None:
            clean_up(run, done, published.sealed, storage, clock)
        return published
    if (earlier := read_plan(run, storage)) is not None:
        reporter.say("Prepared earlier; going on from there.")
        return earlier
    plan = make_plan(run, storage, reporter, workspace).model_copy(update={"egress": dict(egress or {})})
    if run.spec.output.if_exists is IfExists.REUSE:
        key = reuse_key(run.spec, plan.model.fingerprint, plan.data.digest, plan.initial_adapter)
        if (reused := check_output(run, storage, key, signing_key)) is not None:
            clean_up(run, plan, reused.sealed, storage, clock)
            return reused
    if take_over(run, plan, storage, workspace.run(run.uid) / "prepare"):
        reporter.say("The run in resumeFrom has trained this adapter to its end; publishing is all that is left.")
    storage.write(run.layout.run_file, run.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode())
    storage.write(run.layout.plan_file, plan.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode())
    return plan


def make_plan(run: Run, storage: Storage, reporter: Reporter, workspace: Workspace) -> PlanFile:
    """Model and data checked, tokens written, memory planned."""
    inspected = inspect(run, storage, reporter, workspace)
    targets, _ = check_before_data(run, inspected)
    initial_adapter = adapter_fingerprint(storage, run.spec.lora.init_from)
    check_initial_adapter(storage, run.spec.lora, targets)
    template = read_chat_template(storage, run.spec.model.chat_template)
    tokens_uri, index = prepare_tokens(
        run,
        storage,
        inspected.folder,
        inspected.record.position_limit,
        workspace.run(run.uid) / "prepare",
        reporter,
        processes=None,
    )
    plan = build_train_plan(run, inspected, index)
    for warning in plan.warnings:
        reporter.warn(warning)
    return PlanFile(
        model=inspected.record,
        tokens_uri=tokens_uri,
        data=index.model_copy(update={"samples": []}),
        plan=plan,
        chat_template=None if template is None else digest_bytes(CHAT_TEMPLATE, template.encode()),
        initial_adapter=initial_adapter,
    )


def inspect(run: Run, storage: Storage, reporter: Reporter, workspace: Workspace) -> InspectedModel:
    """The model folder, whole, its small files fetched into the run's scratch folder."""
    scratch = workspace.run(run.uid) / "model"
    scratch.mkdir(parents=True, exist_ok=True)
    inspected = inspect_model(storage, run.spec.model.uri, scratch, run.spec.model.license, run.settings, reporter)
    check_complete(inspected.config, inspected.tensors)
    return inspected


def read_plan(run: Run, storage: Storage) -> PlanFile | None:
    """plan.json of this run, or None when this version of Cloister has not prepared it."""
    try:
        return PlanFile.model_validate_json(storage.read(run.layout.plan_file))
    except (MissingObject, ValidationError):
        return None


def require_plan(run: Run, storage: Storage) -> PlanFile:
    """plan.json of this run.

    Raises CloisterError(Internal) when prepare has not run.
    """
    plan = read_plan(run, storage)
    if plan is None:
        raise CloisterError(
            FailureReason.INTERNAL,
            f"There is no plan of this version of Cloister at {run.layout.plan_file}. Run prepare for this run first.",
        )
    return plan
