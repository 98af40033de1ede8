"""`cloister plan`: what prepare would check and choose, and what other settings would need; nothing is written."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from cloister_api.exit_codes import ExitCode
from cloister_api.job import FineTuneJobSpec
from cloister_api.reuse import reuse_key
from cloister_api.run import Run
from cloister_trainer.cli.local import find_run, load_one_job, local_run, local_storage
from cloister_trainer.model.advice import WhatIf
from cloister_trainer.records import MemoryPart, PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage
from cloister_trainer.workspace import Workspace

if TYPE_CHECKING:
    from cloister_trainer.publish.check import Reused
    from cloister_trainer.publish.sign import SigningKey

GIB = 2**30


def execute(options: argparse.Namespace, reporter: Reporter) -> int:
    """Run prepare's checks against a scratch folder, and print the plan and the what-ifs."""
    from cloister_trainer.model.plan import what_ifs
    from cloister_trainer.prepare.main import inspect, make_plan
    from cloister_trainer.publish.check import load_key

    job = load_one_job(options.job)
    storage = local_storage()
    run = find_run(local_run(job, job.spec, storage), storage, fresh=False)
    key = load_key(run.spec.output.signing, options.signing_key)
    look_at_output(run, storage, None, key)
    with tempfile.TemporaryDirectory(prefix="cloister-plan-") as scratch:
        dry = run.model_copy(update={"spec": writing_to(run.spec, Path(scratch))})
        workspace = Workspace(Path(scratch))
        plan = make_plan(dry, storage, reporter, workspace)
        rows = what_ifs(dry, inspect(dry, storage, Reporter.silent(), workspace), plan.data)
    reused = look_at_output(run, storage, plan, key)
    print_plan(plan, reporter)
    reporter.output.print(what_if_table(rows))
    if reused is not None:
        reporter.result(f"AlreadyPublished: {reused.message} `cloister run` would train nothing.")
    return ExitCode.DONE


def look_at_output(run: Run, storage: Storage, plan: PlanFile | None, key: SigningKey | None) -> Reused | None:
    """What lies at the output and means that nothing is to be made; the part of prepare's check that only reads.

    Without a plan ifExists Reuse is left undecided. Raises CloisterError: OutputExists, SigningFailed.
    """
    from cloister_trainer.publish.check import judge_existing
    from cloister_trainer.publish.pointer import read_pointer

    reuse = reuse_key(run.spec, plan.model.fingerprint, plan.data.digest, plan.initial_adapter) if plan else None
    return judge_existing(run, storage, read_pointer(storage, run.output), reuse, key)


def writing_to(spec: FineTuneJobSpec, folder: Path) -> FineTuneJobSpec:
    """`spec` with everything that prepare writes going to a local folder."""
    storage = spec.storage.model_copy(update={"run_uri": f"file://{folder}/run"})
    dataset = spec.dataset.model_copy(update={"cache_uri": None})
    return spec.model_copy(update={"storage": storage, "dataset": dataset})


def print_plan(plan: PlanFile, reporter: Reporter) -> None:
    """What was found and chosen, then every part of the memory."""
    chosen, data = plan.plan, plan.data
    summary = Table("", "", show_header=False, title="Plan")
    for name, value in (
        ("model", f"{plan.model.model_type}, {plan.model.base_parameters:,} parameters"),
        ("licence", f"{plan.model.license.id} ({plan.model.license.evidence})"),
        ("adapter", f"{chosen.trainable_parameters:,} parameters on {len(chosen.target_modules):,} modules"),
        ("examples", f"{data.epoch_examples:,} an epoch, {data.validation_examples:,} for validation"),
        ("tokens", f"{data.epoch_tokens:,} an epoch, {data.epoch_trained_tokens:,} of them trained"),
        ("longest example", f"{data.longest:,} tokens (maxLength {chosen.max_length:,})"),
        ("steps", f"{chosen.total_steps:,} ({chosen.steps_per_epoch:,} an epoch)"),
        ("ZeRO stage", str(chosen.zero_stage)),
        ("micro-batch", f"{chosen.micro_batch_tokens:,} tokens, {'packed' if chosen.packing else 'not packed'}"),
        ("gradient checkpointing", "yes" if chosen.gradient_checkpointing else "no"),
    ):
        summary.add_row(name, value)
    reporter.output.print(summary)
    for title, parts in (
        ("Memory of one GPU", chosen.gpu_memory),
        ("Host memory of one worker", chosen.host_memory),
        ("Local disk of one worker", chosen.local_disk),
    ):
        if parts:
            reporter.output.print(memory_table(title, parts))


def what_if_table(rows: list[WhatIf]) -> Table:
    """Peak memory of one GPU by length and memory (rows) and number of GPUs (columns)."""
    counts = sorted({row.gpus for row in rows})
    table = Table(
        "maxLength",
        "GPU memory",
        *(f"{count} GPU{'s' if count > 1 else ''}" for count in counts),
        title="What if: peak memory of one GPU",
        caption="z: ZeRO stage, c: with gradient checkpointing, -: does not fit",
    )
    cells = {(row.max_length, row.gpu_memory, row.gpus): what_if_cell(row) for row in rows}
    for length, memory in sorted({(row.max_length, row.gpu_memory) for row in rows}):
        row = (cells.get((length, memory, count), "") for count in counts)
        table.add_row(f"{length:,}", f"{memory // GIB} GiB", *row)
    return table


def what_if_cell(row: WhatIf) -> str:
    """`6.9 GiB z2 c`, or a dash where it does not fit."""
    if not row.fits:
        return "-"
    return f"{row.peak_bytes / GIB:.1f} GiB z{row.zero_stage}{' c' if row.gradient_checkpointing else ''}"


def memory_table(title: str, parts: list[MemoryPart]) -> Table:
    """Every part in bytes, and the sum."""
    table = Table("part", "bytes", "", "note", title=title)
    for part in parts:
        table.add_row(part.name, f"{part.bytes:,}", gibibytes(part.bytes), part.note)
    total = sum(part.bytes for part in parts)
    table.add_row("total", f"{total:,}", gibibytes(total), "", style="bold")
    return table


def gibibytes(count: int) -> str:
    """Bytes as GiB with two digits."""
    return f"{count / GIB:.2f} GiB"
