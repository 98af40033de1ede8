"""The DeepSpeed engine: ZeRO stages 0 to 3 around one module whose forward returns the loss."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_cluster import Offload
from cloister_api.spec_training import Precision, Training
from cloister_trainer.model.memory_parts import reduce_bucket_elements
from cloister_trainer.records import TrainPlan
from cloister_trainer.train.layout import MicroBatch
from cloister_trainer.train.model import TrainingModule, base_type
from cloister_trainer.train.nf4 import quantised_weights

NEVER = 1_000_000_000_000


def prepare_deepspeed(device: torch.device) -> None:
    """Choose DeepSpeed's accelerator, and keep it from compiling operators; call before anything imports it.

    On CPUs every start would otherwise build the shared-memory operator with a C++ compiler (20 to 40 s), and a build
    that was killed leaves a lock on which later starts wait for ever.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.ops
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    deepspeed.ops.__compatible_ops__ = {}
    # ZeRO looks at each step's gradient norm, for which the host would wait for the device. `Recorder` notices a norm
    # that is not finite one step later, before anything of the step is stored.
    stage_1_and_2.is_invalid_grad_norm = stage3.is_invalid_grad_norm = lambda _norm: False


def deepspeed_config(plan: TrainPlan, training: Training, offload: Offload, *, gpus: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for the numerical contract.

    Stages 0 to 2 have no precision block, which would cast the float32 adapters. Stage 3 needs `bf16` so that the base
    is sharded in bfloat16, and then float32 gradients and communication. At stage 0 gradients are clipped by `Engine`,
    since DeepSpeed does not tell their norm there. Below stage 3 communication does not overlap: all gradients of an
    adapter fit into one bucket, so there is nothing to overlap, and DeepSpeed would wait for the device every time.
    """
    stage = plan.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": gpus and stage == 3,
        "contiguous_gradients": True,
        "reduce_bucket_size": reduce_bucket_elements(plan.trainable_parameters),
    }
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": training.max_grad_norm if stage > 0 else 0.0,
        "steps_per_print": NEVER,
        "zero_optimization": zero,
    }
    if stage == 3:
        config["communication_data_type"] = "fp32"
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        if training.precision is Precision.BF16:
            config["bf16"] = {"enabled": True}
        if plan.hpz_partition is not None:
            zero["zero_hpz_partition_size"] = plan.hpz_partition
        if offload is Offload.PARAMETERS:
            zero["offload_param"] = {"device": "cpu", "pin_memory": gpus}
    return config


class Engine:
    """A DeepSpeed engine that accumulates as many micro-batches as it is given and tells the gradient's norm."""

    def __init__(
        self,
        module: TrainingModule,
        parameters: Mapping[str, nn.Parameter],
        stage: int,
        training: Training,
        config: dict[str, Any],
    ) -> None:
        import deepspeed

        self.stage, self.parameters, self._max_norm = stage, dict(parameters), training.max_grad_norm
        optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=0.0,  # set at each step; stage 3 makes a step of its own while it starts
            betas=(training.optimizer.beta1, training.optimizer.beta2),
            eps=training.optimizer.epsilon,
            weight_decay=training.weight_decay,
        )
        self.deepspeed, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.inner = optimizer
        self.world_size = torch.distributed.get_world_size()
        for master in self.masters():
            if master in self.inner.state:
                self.inner.state[master]["step"].zero_()
        self._assert_dtypes(base_type(training.precision))

    def masters(self) -> list[Tensor]:
        """The float32 tensors that the optimizer updates: at stage 0 the parameters, else this rank's flat parts."""
        zero = self.deepspeed.optimizer
        if self.stage == 0:
            return list(self.parameters.values())
        flat: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        )
        return flat

    def accumulate(self, micro_batch: MicroBatch, global_labels: int, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; returns its summed loss, detached.

        The engine averages gradients over ranks, so the sum is scaled by world size / label tokens of the whole batch:
        the gradient is that of one big batch's mean loss per label token.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        loss: Tensor = self.deepspeed(micro_batch)
        self.deepspeed.backward(loss * (self.world_size / global_labels), scale_wrt_gas=False)
        return loss.detach()

    def step(self, learning_rate: float) -> Tensor | float:
        """Clip, update, clear the gradients; returns the norm that they had before clipping, infinite if not finite."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        norm: Tensor | float
        if self.stage == 0:
            limit = self._max_norm if self._max_norm > 0 else float("inf")
            norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
            self.deepspeed.step()
        else:
            self.deepspeed.step()
            norm = self.deepspeed.get_global_grad_norm()
            if isinstance(norm, Tensor):
                norm = torch.where(norm < 0, torch.inf, norm)  # ZeRO's mark for one that is not finite
        return norm

    def _assert_dtypes(self, base_type: torch.dtype) -> None:
        """Adapter and optimizer in float32, the frozen base's matrices in the precision's type, at every stage."""
        module, trained = self.deepspeed.module, {id(parameter) for parameter in self.parameters.values()}
        packed = {id(weight): weight for _, weight in quantised_weights(module)}
        plain = [p for p in module.parameters() if id(p) not in trained | packed.keys() and _dimensions(p) == 2]
        expected = {
            "the optimizer": (torch.float32, {master.dtype for master in self.masters()}),
            "the adapter": (torch.float32, {parameter.dtype for parameter in self.parameters.values()}),
            "the base": (base_type, {parameter.dtype for parameter in plain}),
        }
        if packed:
            expected["the base in 4 bits"] = (torch.uint8, {weight.dtype for weight in packed.values()})
        for what, (wanted, found) in expected.items():
            if found != {wanted}:
                names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
                raise CloisterError(
                    FailureReason.SELF_TEST_FAILED,
                    f"Self-test types: at ZeRO stage {self.stage} {what} holds {names}, expected "
                    f"{str(wanted).removeprefix('torch.')}.",
                )


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also where zero.Init has spread it."""
    return len(parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape)
