"""From the fetched model to an engine that trains its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cloister_trainer.model.targets import Targets
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.engine import Engine, deepspeed_config, prepare_deepspeed
from cloister_trainer.train.inputs import Inputs
from cloister_trainer.train.lora import add_lora, trainable_parameters
from cloister_trainer.train.model import TrainingModule, load_base
from cloister_trainer.train.targets import targets_in

T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    """A model with its adapter in an engine."""

    module: TrainingModule
    engine: Engine
    targets: Targets

    @property
    def peft_model(self) -> Any:
        """The PeftModel in the engine."""
        return self.module.model


def build_engine(context: WorkerContext, inputs: Inputs) -> Built:
    """Load the base, add the adapter, start DeepSpeed. At stage 3 the base is sharded while it is read."""
    run, plan = context.run, context.plan.plan
    training, stage = run.spec.training, plan.zero_stage
    prepare_deepspeed(context.device)
    config = deepspeed_config(stage, training, gpus=context.device.type == "cuda")
    if training.deterministic:
        torch.use_deterministic_algorithms(True)
    sharding = shard_while_loading(config) if stage == 3 else None

    model = load_base(inputs.model.folder, training.precision, context.plan.data.longest)
    names = [file.name for file in context.plan.model.weight_files]
    targets = targets_in(inputs.model.folder, names, run.spec.lora)
    peft_model = add_lora(model, targets, run.spec.lora, training.seed)
    module = TrainingModule(peft_model, training.precision)
    module.set_gradient_checkpointing(plan.gradient_checkpointing)
    module.train()
    engine = Engine(module, trainable_parameters(peft_model), stage, training, context.device, config)
    del sharding
    return Built(module, engine, targets)


def shard_while_loading(config: dict[str, Any]) -> object:
    """While the result lives, transformers' from_pretrained shards what it reads (DeepSpeed's zero.Init)."""
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)


def share(value: T) -> T:
    """Rank 0's value on all ranks."""
    if dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
