"""The end of a run: the best adapter is staged, read back, answers the held-out rows; checks.json comes last."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Quantization
from cloister_api.status import ExactMatch
from cloister_trainer.records import Checks, FileDigest, MemoryPart, SampleAnswer
from cloister_trainer.storage import Storage
from cloister_trainer.train.answers import answer_samples
from cloister_trainer.train.checkpoint import digest_of
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.engine_state import set_adapter, snapshot
from cloister_trainer.train.inputs import Inputs
from cloister_trainer.train.lora import CONFIG_FILE, WEIGHTS_FILE, save_adapter
from cloister_trainer.train.metrics import peak_memory_bytes
from cloister_trainer.train.patience import Patience
from cloister_trainer.train.setup import Built
from cloister_trainer.train.state import TrainState

PACKAGES = ("cloister-trainer", "deepspeed", "peft", "ray", "torch", "transformers")
PACKAGES_OF: dict[Quantization, tuple[str, ...]] = {Quantization.NONE: (), Quantization.NF4: ("bitsandbytes",)}


def finish(
    context: WorkerContext,
    built: Built,
    inputs: Inputs,
    state: TrainState,
    best: dict[str, Tensor] | None,
    egress: dict[str, Any],
    patience: Patience,
    beat: Callable[[], None],
) -> None:
    """Stage the adapter with its checks. A collective up to the answers; the rest is rank 0's alone.

    A store that is away is waited for, since all of training is done.

    Raises CloisterError (ADAPTER_INVALID) when what was staged does not read back as what was trained.
    """
    chosen_step = choose_adapter(context, built, state, best)
    adapter = snapshot(built.engine, keep=context.is_first, moments=False)
    memory = measured_memory(context)
    answers = answer_samples(context, built, inputs.model.folder, beat)
    if not context.is_first:
        return
    folder = context.scratch / "staged"
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(built.module.model, adapter, folder, context.run.spec.model.uri)
    staged = patience.call(lambda: stage_files(context.storage, folder, context.run.layout.adapter, adapter))
    beat()
    merged = (
        stage_merged(context, built, inputs, adapter, patience, beat) if context.run.spec.output.merged_model else []
    )
    checks = make_checks(context, inputs, state, chosen_step, staged, merged, answers, memory, egress)
    text = checks.model_dump_json(by_alias=True).encode()
    patience.call(lambda: context.storage.write(context.run.layout.checks_file, text))


def choose_adapter(context: WorkerContext, built: Built, state: TrainState, best: dict[str, Tensor] | None) -> int:
    """Make the best adapter the live one when evaluation.keepBest asks for it; its step. A collective."""
    if not context.run.spec.evaluation.keep_best or state.best_step in {None, state.step}:
        return state.step
    set_adapter(built.engine, best.__getitem__ if best is not None else None, context.device)
    return state.best_step or state.step


def stage_files(storage: Storage, folder: Path, uri: str, live: dict[str, Tensor]) -> dict[str, FileDigest]:
    """Upload the adapter's two files, read them back, and compare with the live tensors bit for bit."""
    from safetensors.torch import load

    digests = {name: digest_of(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)}
    stored: dict[str, bytes] = {}
    for name, digest in digests.items():
        storage.upload(folder / name, join(uri, name))
        stored[name] = storage.read(join(uri, name))
        if hashlib.sha256(stored[name]).hexdigest() != digest.sha256:
            raise CloisterError(
                FailureReason.ADAPTER_INVALID,
                f"{join(uri, name)} reads back different from what was written. Check the object store.",
            )
    tensors = load(stored[WEIGHTS_FILE])
    if tensors.keys() != live.keys() or not all(torch.equal(tensors[name], live[name]) for name in live):
        raise CloisterError(
            FailureReason.ADAPTER_INVALID, f"The adapter read back from {uri} differs from the trained one."
        )
    return digests


def stage_merged(
    context: WorkerContext,
    built: Built,
    inputs: Inputs,
    adapter: dict[str, Tensor],
    patience: Patience,
    beat: Callable[[], None],
) -> list[FileDigest]:
    """The merged model's weights, one file after another, and the base's small files beside them."""
    from cloister_trainer.train.merge import adapter_deltas
    from cloister_trainer.train.merged_files import write_merged

    plan, layout, storage = context.plan.model, context.run.layout, context.storage

    def upload(path: Path, name: str) -> None:
        patience.call(lambda: storage.upload(path, join(layout.merged, name)))

    folder = context.scratch / "merged"
    shutil.rmtree(folder, ignore_errors=True)
    digests = []
    deltas = adapter_deltas(built.module.model, adapter)
    for file in write_merged(inputs.model.folder, inputs.model.weight_files, plan.model_type, deltas, folder):
        digests.append(file)
        upload(folder / file.name, file.name)
        (folder / file.name).unlink()
        beat()
    for file in plan.small_files:
        upload(inputs.model.folder / file.name, file.name)
        digests.append(file)
    return digests


def make_checks(
    context: WorkerContext,
    inputs: Inputs,
    state: TrainState,
    chosen_step: int,
    staged: dict[str, FileDigest],
    merged: list[FileDigest],
    answers: tuple[ExactMatch, list[SampleAnswer]] | None,
    memory: list[MemoryPart],
    egress: dict[str, Any],
) -> Checks:
    """What was measured and proved. The comparisons that it tells of have raised before when they failed."""
    exact_match, samples = answers if answers is not None else (None, [])
    return Checks(
        step=state.step,
        total_steps=context.plan.plan.total_steps,
        best_step=chosen_step,
        base_digest=inputs.model.base_digest,
        weight_files=inputs.model.weight_files,
        adapter=staged[WEIGHTS_FILE],
        adapter_config=staged[CONFIG_FILE],
        read_back_equal=True,
        frozen_unchanged=True,
        self_tests=state.self_tests,
        base_loss=state.base_loss,
        loss=next((point.loss for point in state.evaluations if point.step == chosen_step), None),
        evaluations=state.evaluations,
        exact_match=exact_match,
        samples=samples,
        final_train_loss=state.last_train_loss or 0.0,
        train_seconds=state.train_seconds,
        gpu_seconds=round(state.gpu_seconds),
        world_sizes=state.world_sizes,
        measured_memory=memory,
        versions={name: version(name) for name in (*PACKAGES, *PACKAGES_OF[context.run.spec.lora.quantization])},
        egress=egress,
        merged_files=merged,
        plan=context.plan.plan,
    )


def measured_memory(context: WorkerContext) -> list[MemoryPart]:
    """The peak of the rank that used most. A collective."""
    peak = torch.tensor(peak_memory_bytes(context.device), device=context.device)
    if context.world_size > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    what = "GPU" if context.device.type == "cuda" else "process"
    return [MemoryPart(name="peak", bytes=int(peak), note=f"Most that one rank's {what} held during training")]
