"""The end of a run: the best adapter is checked, staged, read back and measured; checks.json comes last."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_trainer.records import Checks, FileDigest
from cloister_trainer.storage import Storage
from cloister_trainer.train.checkpoint import digest_of
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.engine_state import set_adapter, snapshot
from cloister_trainer.train.inputs import Inputs
from cloister_trainer.train.lora import CONFIG_FILE, WEIGHTS_FILE, save_adapter
from cloister_trainer.train.setup import Built
from cloister_trainer.train.state import TrainState

PACKAGES = ("cloister-trainer", "deepspeed", "peft", "ray", "torch", "transformers")
log = logging.getLogger(__name__)


def finish(
    context: WorkerContext,
    built: Built,
    inputs: Inputs,
    state: TrainState,
    best: dict[str, Tensor] | None,
    beat: Callable[[], None],
) -> None:
    """Stage the adapter with its checks. A collective up to the staging, which rank 0 does alone."""
    run = context.run
    chosen_step = state.step
    if run.spec.evaluation.keep_best and state.best_step is not None:
        chosen_step = state.best_step
        set_adapter(built.engine, best.__getitem__ if best is not None else None, context.device)
    adapter = snapshot(built.engine, keep=context.is_first, moments=False)
    if not context.is_first:
        return
    folder = context.scratch / "staged"
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(built.peft_model, adapter, folder, run.spec.model.uri)
    staged = _stage(context.storage, folder, run.layout.adapter, adapter)
    checks = Checks(
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
        final_train_loss=state.last_train_loss or 0.0,
        train_seconds=state.train_seconds,
        gpu_seconds=round(state.gpu_seconds),
        world_sizes=state.world_sizes,
        versions={package: version(package) for package in PACKAGES},
    )
    context.storage.write(run.layout.checks_file, checks.model_dump_json(by_alias=True).encode())


def _stage(storage: Storage, folder: Path, uri: str, live: dict[str, Tensor]) -> dict[str, FileDigest]:
    """Upload the adapter's two files, read them back, and compare with the live tensors bit for bit."""
    from safetensors.torch import load

    digests = {name: digest_of(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)}
    for name, digest in digests.items():
        storage.upload(folder / name, join(uri, name))
        stored = storage.read(join(uri, name))
        if hashlib.sha256(stored).hexdigest() != digest.sha256:
            raise CloisterError(
                FailureReason.ADAPTER_INVALID,
                f"{join(uri, name)} reads back different from what was written. Check the object store.",
            )
    stored_tensors = load(storage.read(join(uri, WEIGHTS_FILE)))
    if stored_tensors.keys() != live.keys() or not all(torch.equal(stored_tensors[k], live[k]) for k in live):
        raise CloisterError(
            FailureReason.ADAPTER_INVALID, f"The adapter read back from {uri} differs from the trained one."
        )
    return digests
