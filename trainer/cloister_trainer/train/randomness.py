"""Randomness without state: every draw is a function of a seed and a name, so resuming and recomputing repeat it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any values that have a stable text."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def initial_a(name: str, shape: tuple[int, int], seed: int) -> Tensor:
    """LoRA's A, float32 [rank, in] on the CPU, as PEFT draws it but by (seed, parameter name).

    Kaiming uniform with a = sqrt(5) (He et al. 2015; Hu et al. 2021's code): uniform within 1 / sqrt(in).
    """
    generator = torch.Generator().manual_seed(seed_of("adapter", seed, name))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@dataclass(eq=False)
class DropoutKey:
    """Which forward pass the next masks belong to; one object shared by all dropout modules of a model."""

    seed: int
    step: int = 0
    rank: int = 0
    micro_batch: int = 0
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict, repr=False)

    def generator(self, name: str, device: torch.device) -> torch.Generator:
        """The device's generator, set to the start of this pass's stream for module `name`."""
        generator = self.generators.setdefault(device, torch.Generator(device))
        return generator.manual_seed(seed_of("dropout", self.seed, self.step, self.rank, self.micro_batch, name))


class StatelessDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose mask depends on (seed, step, rank, micro-batch, module) alone.

    A forward pass that gradient checkpointing computes again draws the same mask.
    """

    def __init__(self, p: float, name: str, key: DropoutKey) -> None:
        super().__init__()
        self.p = p
        self._name = name
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """`x` with a fraction `p` of its elements set to 0 and the others scaled by 1 / (1 - p), while training."""
        if not self.training:
            return x
        generator = self.key.generator(self._name, x.device)
        keep = torch.empty(x.shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p, generator=generator)
        return (x * keep).div_(1 - self.p)
