"""Every family in bfloat16, the precision of a job that names none: a run's checks, and steps that learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cloister_api.errors import CloisterError
from cloister_api.spec_cluster import Offload
from cloister_api.spec_training import Precision, Training
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.records import TrainPlan
from cloister_trainer.train.engine import Engine, deepspeed_config, prepare_deepspeed
from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import trainable_parameters
from cloister_trainer.train.model import TrainingModule
from cloister_trainer.train.selftests import (
    check_base_loss,
    check_frozen,
    check_isolation,
    check_moved,
    frozen_checksums,
)
from support.tiny_models import SETTINGS, VARIANTS, ListExamples, adapter_state, save_tiny_model, with_adapter

CPU = torch.device("cpu")
STAGE, STEPS, RATE = 2, 6, 1e-2
TRAINING = Training()
assert TRAINING.precision is Precision.BF16


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What DeepSpeed's engine takes for granted."""
    prepare_deepspeed(CPU)
    store = dist.FileStore(str(tmp_path_factory.mktemp("rank") / "store"), 1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.parametrize("model_type", [*SETTINGS, *VARIANTS])
def test_a_family_passes_the_checks_of_a_run_and_learns_in_bfloat16(model_type: str, tmp_path: Path) -> None:
    module = with_adapter(save_tiny_model(tmp_path, model_type, torch.bfloat16), precision=TRAINING.precision)
    packing = FAMILIES[module.base.config.model_type].packing
    examples = ListExamples([30, 12, 25] if packing else [30])
    engine = engine_of(module)
    assert_isolation(module, packing=packing)
    assert check_base_loss(module, examples, CPU, new_adapter=True)
    start, frozen = adapter_state(module.model), frozen_checksums(module)
    losses = learn(engine, examples)
    assert check_moved(start, adapter_state(module.model))
    assert check_frozen(frozen, frozen_checksums(module))
    assert losses[-1] < 0.9 * losses[0]


def engine_of(module: TrainingModule) -> Engine:
    """The engine that a run makes; it asserts the types of base, adapter and optimizer."""
    parameters = trainable_parameters(module.model)
    plan = TrainPlan(
        zero_stage=STAGE,
        micro_batch_tokens=100,
        gradient_checkpointing=False,
        packing=True,
        max_length=100,
        total_steps=STEPS,
        steps_per_epoch=1,
        target_modules=[],
        trainable_parameters=sum(parameter.numel() for parameter in parameters.values()),
        gpu_memory=[],
        host_memory=[],
        local_disk=[],
    )
    config = deepspeed_config(plan, TRAINING, Offload.NONE, gpus=False)
    return Engine(module, parameters, STAGE, TRAINING, config)


def assert_isolation(module: TrainingModule, *, packing: bool) -> None:
    """The self-test says of the family what the table says."""
    if packing:
        assert check_isolation(module, CPU)
        return
    with pytest.raises(CloisterError, match=r"isolation: .* changes another's hidden states"):
        check_isolation(module, CPU)


def learn(engine: Engine, examples: ListExamples) -> list[float]:
    """The loss of a label token before each step."""
    micro_batch = collate(examples, tuple(range(len(examples))), "cpu")
    losses = []
    for _ in range(STEPS):
        loss = engine.accumulate(micro_batch, micro_batch.label_count, last=True)
        assert loss.dtype is torch.float32
        assert torch.isfinite(torch.as_tensor(engine.step(RATE)))
        losses.append(float(loss) / micro_batch.label_count)
    return losses
