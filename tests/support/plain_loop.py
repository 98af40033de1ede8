"""The plain truth that training is held against: stock transformers, PEFT and PyTorch, in one process.

Each global batch is one padded batch through one forward pass. Of Cloister there are only the order of the examples,
the learning rates and a new adapter's start values, which have tests of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cloister_api.spec_training import Precision
from cloister_trainer.train import schedule
from cloister_trainer.train.batches import batch_ids, position_of, steps_per_epoch
from cloister_trainer.train.randomness import initial_a
from support.tiny_run import TinyRun

UNTRAINED = -100


def save_start(tiny: TinyRun, folder: Path, *, random_b: bool) -> Path:
    """The adapter that a run begins with, as stock PEFT saves it: a new one, or one whose B is not 0."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    lora = tiny.run.spec.lora
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, target_modules=tiny.plan.plan.target_modules
    )
    model = get_peft_model(stock_base(tiny), config)
    generator = torch.Generator().manual_seed(3)
    state = {
        name: initial_a(name, (tensor.shape[0], tensor.shape[1]), tiny.run.spec.training.seed)
        if ".lora_A." in name
        else torch.empty_like(tensor).normal_(0, 0.05 if random_b else 0.0, generator=generator)
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    set_peft_model_state_dict(model, state)
    model.save_pretrained(folder)
    return folder


def stock_base(tiny: TinyRun) -> Any:
    """The base model as transformers loads it, in the job's precision."""
    from transformers import AutoModelForCausalLM

    precision = tiny.run.spec.training.precision
    dtype = torch.float32 if precision is Precision.FP32 else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(tiny.plan.model.uri.removeprefix("file://"), dtype=dtype)


@dataclass
class Trained:
    """What a plain run left: the loss of each step, and the adapter by PEFT's saved names."""

    losses: list[float]
    adapter: dict[str, Tensor]


class PlainLoop:
    """Trains as the job in `tiny` says, from the adapter in the folder `start`."""

    def __init__(self, tiny: TinyRun, start: Path, device: str = "cpu") -> None:
        from peft import PeftModel

        self._device = device

        self._training, self._total_steps = tiny.run.spec.training, tiny.plan.plan.total_steps
        self._model = PeftModel.from_pretrained(stock_base(tiny), str(start), is_trainable=True).to(device)
        (shard,) = tiny.plan.data.train
        tensors = load_file(Path(tiny.plan.tokens_uri.removeprefix("file://")) / shard.file.name)
        self._tokens = [
            tensors["tokens"][start:end].long() for start, end in tensors["offsets"].unfold(0, 2, 1).tolist()
        ]
        self._spans = {example: (start, end) for example, start, end in tensors["labelSpans"].tolist()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by PEFT's saved names."""
        named = self._model.named_parameters()
        return {name.replace(".default.", "."): parameter for name, parameter in named if parameter.requires_grad}

    def train(self) -> Trained:
        training, parameters = self._training, list(self.parameters.values())
        betas = (training.optimizer.beta1, training.optimizer.beta2)
        optimizer = torch.optim.AdamW(
            parameters, betas=betas, eps=training.optimizer.epsilon, weight_decay=training.weight_decay
        )
        losses = []
        for step in range(1, self._total_steps + 1):
            loss = self.loss(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            optimizer.param_groups[0]["lr"] = schedule.learning_rate(step, self._total_steps, training)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return Trained(losses, {name: tensor.detach().clone() for name, tensor in self.parameters.items()})

    def gradients(self, step: int, adapter: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the loss of `step`'s batch where the adapter is `adapter`."""
        parameters = self.parameters
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(adapter[name])
        found = torch.autograd.grad(self.loss(step), list(parameters.values()))
        return dict(zip(parameters, found, strict=True))

    def loss(self, step: int) -> Tensor:
        """Mean cross-entropy over the label tokens of `step`'s global batch."""
        count, size = len(self._tokens), self._training.global_batch_size
        epoch, k = position_of(step, steps_per_epoch(count, size))
        chosen = batch_ids(torch.arange(count).numpy(), self._training.seed, epoch, k, size).tolist()
        ids = _padded([self._tokens[i] for i in chosen], 0).to(self._device)
        seen = _padded([torch.ones_like(self._tokens[i]) for i in chosen], 0).to(self._device)
        labels = _padded([self._labels(i) for i in chosen], UNTRAINED).to(self._device)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._training.precision is Precision.BF16):
            logits = self._model(input_ids=ids, attention_mask=seen, use_cache=False).logits
        return nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=UNTRAINED
        )

    def _labels(self, example: int) -> Tensor:
        start, end = self._spans[example]
        labels = torch.full_like(self._tokens[example], UNTRAINED)
        labels[start:end] = self._tokens[example][start:end]
        return labels


def _padded(rows: list[Tensor], filling: int) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filling)
