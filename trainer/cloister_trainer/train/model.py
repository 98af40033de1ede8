"""The base model, and the module that DeepSpeed wraps: from a micro-batch to its summed loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cloister_api.spec_training import Precision, Quantization
from cloister_trainer.model.complete import incomplete
from cloister_trainer.model.config import native_config, read_config
from cloister_trainer.model.cost import COMPUTE_TYPES
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.train import attention, nf4
from cloister_trainer.train.layout import MicroBatch
from cloister_trainer.train.loss import Head, summed_cross_entropy
from cloister_trainer.train.norms import fuse_norms
from cloister_trainer.train.randomness import StatelessDropout
from cloister_trainer.train.routers import keep_routers_as_stock

CPU = torch.device("cpu")


def load_base(
    folder: Path,
    precision: Precision,
    longest: int,
    quantization: Quantization = Quantization.NONE,
    device: torch.device = CPU,
) -> Any:
    """The causal language model in `folder`, frozen, bf16 or fp32, on the CPU (or as an active zero.Init says).

    `longest` is the length of the longest example in tokens. With NF4 the layers' linear modules are in 4 bits, and the
    model is on `device`, which quantises it. For a GPU its norms run in one kernel (train/norms.py); routers of
    mixtures run outside autocast (train/routers.py). Raises ModelUnsupported where a weight of the model is not in
    the files or has another shape there: transformers would draw it at random.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    quantised = quantization is Quantization.NF4
    config = native_config(read_config(folder))
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=base_type(precision),
        attn_implementation=attention.implementation_for(config, longest),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that the names are told
        output_loading_info=True,
        **(nf4.loading(base_type(precision), device) if quantised else {}),
    )
    strange = {name for name, *_ in loaded["mismatched_keys"]}
    if lacking := sorted({*loaded["missing_keys"], *strange}):
        raise incomplete(lacking)
    if device.type == "cuda":
        fuse_norms(model)
    family = FAMILIES[config.model_type]
    if family.own_class is None:
        keep_routers_as_stock(model, family.routers)
    return frozen(nf4.settle(model) if quantised else model)


def base_type(precision: Precision) -> torch.dtype:
    """The type of the frozen weights and of matrix products."""
    dtype: torch.dtype = getattr(torch, COMPUTE_TYPES[precision])
    return dtype


def frozen(model: Any) -> Any:
    """The same model with no trainable parameter and no key-value cache by default."""
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


class TrainingModule(nn.Module):
    """From a MicroBatch to the float32 sum of its label tokens' cross-entropy; what goes to deepspeed.initialize.

    Matrix products run in bf16 by an autocast that is entered here: DeepSpeed's engine switches off one that is
    entered outside it. Precision FP32 has none.
    """

    def __init__(self, model: Any, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self._autocast = precision is Precision.BF16
        self._dropout_keys = {module.key for module in model.modules() if isinstance(module, StatelessDropout)}

    def set_position(self, step: int, rank: int, micro_batch: int) -> None:
        """Say which forward pass comes next: dropout masks depend on nothing else."""
        for key in self._dropout_keys:
            key.step, key.rank, key.micro_batch = step, rank, micro_batch

    @property
    def base(self) -> Any:
        """The transformers model, adapter layers within."""
        return self.model.get_base_model()

    def train(self, mode: bool = True) -> TrainingModule:
        """Only what is ours trains: the frozen base's own dropout, jitter and random routing stay off.

        Decoder layers must be in training mode to recompute activations.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        super().train(False)
        self.training = mode
        for module in self.modules():
            if isinstance(module, StatelessDropout | GradientCheckpointingLayer):
                module.training = mode
        return self

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute each decoder layer in the backward pass, or keep its activations."""
        if enabled:
            self.base.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.base.activation_checkpointing_disable()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, dropout is off."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def forward(self, micro_batch: MicroBatch) -> Tensor:
        """The summed loss, a float32 scalar; 0 but connected where no token carries loss."""
        with self.precision(micro_batch.input_ids.device):
            hidden = self.hidden_states(micro_batch)
            chosen = hidden.index_select(0, micro_batch.label_positions)
            return summed_cross_entropy(chosen, micro_batch.labels, Head.of(self.base))

    def hidden_states(self, micro_batch: MicroBatch) -> Tensor:
        """The backbone's last hidden states [T, H], after the final norm."""
        backbone = self.base.base_model
        output = backbone(
            input_ids=micro_batch.input_ids,
            position_ids=micro_batch.position_ids,
            use_cache=False,
            segments=attention.Segments(micro_batch.segment_lengths, micro_batch.cu_seqlens),
        )
        return cast(Tensor, output.last_hidden_state).squeeze(0)

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """The autocast that matrix products run under."""
        return torch.autocast(device.type, torch.bfloat16) if self._autocast else nullcontext()
