"""What merging changes: W + scaling * B A for each stored tensor that holds an adapted weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cloister_trainer.model.families import Family
from cloister_trainer.model.tensors import renamed
from cloister_trainer.train.lora_layers import adapts_experts, lora_layers

_EXPERT = re.compile(r"^(?P<layer>model\.layers\.\d+)\..*experts\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight$")


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight."""

    a: Tensor
    """float32 [experts * rank, in]."""
    b: Tensor
    """float32 [out, rank * experts]."""
    scaling: float
    experts: int
    transposed: bool
    """Experts are stored [experts, in, out]."""

    def rows(self, expert: int, start: int, end: int) -> Tensor:
        """Rows of scaling * B A of one expert, as its weight is stored; float32 [end - start, columns].

        PEFT keeps A expert by expert and B rank by rank.
        """
        a = self.a.view(self.experts, -1, self.a.shape[1])[expert]
        b = self.b.view(self.b.shape[0], -1, self.experts)[:, :, expert]
        left, right = (a.T, b.T) if self.transposed else (b, a)
        return self.scaling * (left[start:end] @ right)


@dataclass(frozen=True)
class Change:
    """What happens to one stored tensor: a matrix, or all experts' matrices [experts, rows, columns]."""

    delta: Delta
    expert: int = 0
    """The expert whose matrix is the tensor's first."""
    start: int = 0
    """The row of the live weight that is the tensor's first: some checkpoints split what the live model fuses."""

    def applied(self, weight: Tensor, matrix: int, row: int) -> Tensor:
        """Merged rows, from row `row` of the tensor's `matrix` on, in the stored type; the sum is made in float32."""
        first = self.start + row
        change = self.delta.rows(self.expert + matrix, first, first + len(weight))
        return (weight.float() + change).to(weight.dtype)


def adapter_deltas(peft_model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Delta]:
    """By the adapted weight's name in the live model; `state` holds the adapter by PEFT's saved names."""
    names = {id(module): name for name, module in peft_model.named_modules()}
    deltas = {}
    for own, layer in lora_layers(peft_model).items():
        fused = adapts_experts(layer)
        deltas[own if fused else f"{own}.weight"] = Delta(
            a=state[f"{names[id(layer)]}.lora_A.weight"],
            b=state[f"{names[id(layer)]}.lora_B.weight"],
            scaling=next(iter(layer.scaling.values())),
            experts=layer.num_experts if fused else 1,
            transposed=fused and not layer._did_swap_in_out_features,
        )
    return deltas


def change_of(stored: str, family: Family, deltas: Mapping[str, Delta]) -> Change | None:
    """What the deltas change in the tensor that the checkpoint calls `stored`; None: it stays as it is."""
    live = renamed(family, stored)
    if live in deltas:
        return Change(deltas[live])
    match = _EXPERT.match(live)
    if match is None or family.experts is None or family.experts.stored is None:
        return None
    gate, up, down = family.experts.stored
    fused = family.experts.down if match["matrix"] == down else family.experts.gate_up
    delta = deltas.get(f"{match['layer']}.{fused}")
    if delta is None:
        return None
    start = {gate: 0, up: delta.b.shape[0] // 2, down: 0}[match["matrix"]]
    return Change(delta, int(match["expert"]), start)
