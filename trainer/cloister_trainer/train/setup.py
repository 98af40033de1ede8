"""From the fetched model to an engine that trains its adapter."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from cloister_api.layout import join
from cloister_trainer.egress import merge_proofs, prove_egress
from cloister_trainer.model.config import read_config
from cloister_trainer.model.folder import InspectedModel
from cloister_trainer.model.plan import build_train_plan
from cloister_trainer.model.targets import Targets
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.engine import Engine, deepspeed_config, prepare_deepspeed
from cloister_trainer.train.inputs import Inputs
from cloister_trainer.train.lora import WEIGHTS_FILE, add_lora, load_adapter_state, trainable_parameters
from cloister_trainer.train.lora_layers import ADAPTER, adapts_experts, lora_layers
from cloister_trainer.train.messages import Warned
from cloister_trainer.train.model import TrainingModule, load_base
from cloister_trainer.train.state import Layout, TrainState
from cloister_trainer.train.targets import targets_in, tensors_in

T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    """A model with its adapter in an engine."""

    module: TrainingModule
    engine: Engine
    targets: Targets


def build(context: WorkerContext, inputs: Inputs, beat: Callable[[], None]) -> Built:
    """Load the base, add the adapter, start DeepSpeed. At stage 3 the base is sharded while it is read.

    `beat` is called after each of these.
    """
    run, plan = context.run, context.plan.plan
    training, stage = run.spec.training, plan.zero_stage
    prepare_deepspeed(context.device)
    config = deepspeed_config(plan, training, run.spec.distribution.offload, gpus=context.device.type == "cuda")
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with its own workspace
        torch.use_deterministic_algorithms(True)
    sharding = shard_while_loading(config) if stage == 3 else None

    model = load_base(
        inputs.model.folder,
        training.precision,
        context.plan.data.longest,
        run.spec.lora.quantization,
        context.device,
    )
    beat()
    targets = targets_in(inputs.model.folder, [file.name for file in context.plan.model.weight_files], run.spec.lora)
    peft_model = add_lora(model, targets, run.spec.lora, training.seed)
    if run.spec.lora.init_from is not None:
        load_initial_adapter(context, peft_model, run.spec.lora.init_from.uri)
    module = TrainingModule(peft_model, training.precision)
    module.set_gradient_checkpointing(plan.gradient_checkpointing)
    module.train()
    if stage == 3:
        gather_with_experts(peft_model)
    beat()
    engine = Engine(module, trainable_parameters(peft_model), stage, training, config)
    del sharding
    beat()
    return Built(module, engine, targets)


def shard_while_loading(config: dict[str, Any]) -> object:
    """While the result lives, transformers' from_pretrained shards what it reads (DeepSpeed's zero.Init)."""
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)


def gather_with_experts(peft_model: Any) -> None:
    """Have ZeRO gather what PEFT's layer of a fused expert parameter reads: the parameter, A and B.

    They belong to modules whose forward passes never run there, so that ZeRO's hooks would leave them as empty shards.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for layer in lora_layers(peft_model).values():
        if adapts_experts(layer):
            for parameter in (layer.get_param(), layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight):
                register_external_parameter(layer, parameter)


def load_initial_adapter(context: WorkerContext, peft_model: Any, uri: str) -> None:
    """Start from the published adapter at `uri`. Every rank reads it."""
    from safetensors.torch import load

    load_adapter_state(peft_model, load(context.storage.read(join(uri, WEIGHTS_FILE))), uri)


def plan_again(context: WorkerContext, inputs: Inputs, state: TrainState) -> WorkerContext:
    """The context with a plan for the memory that is really free on every GPU. Raises CloisterError (DOES_NOT_FIT).

    On CPUs the plan stays: another process may take or give back memory at any time.
    """
    if context.device.type != "cuda":
        return context
    free = torch.tensor(torch.cuda.mem_get_info(context.device)[0], device=context.device)
    if context.world_size > 1:
        dist.all_reduce(free, op=dist.ReduceOp.MIN)
    return plan_for(context, inputs, state, int(free))


def plan_for(context: WorkerContext, inputs: Inputs, state: TrainState, free_memory: int) -> WorkerContext:
    """The context with a plan for so many free bytes on every GPU, which `state` keeps for the next start.

    A deterministic run takes the layout of its checkpoint again, where as many ranks made that, so that it gives the
    same bits whatever else uses the GPUs; where it no longer fits, the user is told.
    """
    deterministic = context.run.spec.training.deterministic
    before = state.layout if deterministic and state.layout and state.layout.ranks == context.world_size else None
    folder = inputs.model.folder
    inspected = InspectedModel(
        record=context.plan.model,
        config=read_config(folder),
        folder=folder,
        tensors=tensors_in(folder, [file.name for file in context.plan.model.weight_files]),
    )
    kept = None if before is None else before.choice
    plan = build_train_plan(context.run, inspected, context.plan.data, free_memory, kept)
    state.layout = Layout.of(plan, context.world_size)
    if before is not None and state.layout != before and context.is_first:
        what = f"This start has {state.layout}; the one before had {before}, so sums round otherwise from here on."
        context.sink.push(Warned(f"{what} The job's settings or the GPUs' free memory differ."))
    return dataclasses.replace(context, plan=context.plan.model_copy(update={"plan": plan}))


def prove_egress_of_all(context: WorkerContext) -> dict[str, Any]:
    """The egress proofs of the driver and of all ranks as one, on every rank."""
    proofs: list[dict[str, Any]] = [{} for _ in range(context.world_size)]
    dist.all_gather_object(proofs, prove_egress(context.run))
    return merge_proofs([context.driver_egress, *proofs])


def found_by_first(context: WorkerContext, find: Callable[[Callable[[], None]], T], beat: Callable[[], None]) -> T:
    """What rank 0 finds, on every rank. A collective.

    `find` calls what it is given whenever it goes on waiting: the other ranks, which wait for rank 0, beat then. So
    neither their watchdogs nor the collective's timeout end a wait that rank 0 knows the reason of.
    """
    if context.is_first:
        found = find(lambda: _tell_of(None))
        _tell_of((found,))
        return found
    told = cast(tuple[T] | None, share(None))
    while told is None:
        beat()
        told = cast(tuple[T] | None, share(None))
    return told[0]


def _tell_of(found: object) -> None:
    share(found)


def share(value: T) -> T:
    """Rank 0's value on all ranks."""
    if dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
