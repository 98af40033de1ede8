"""The merged model, W + scaling * B A, written tensor by tensor: the base's files again, with adapted tensors changed.

Names, shapes and types stay, so each file keeps its header and each tensor its place; memory holds one adapted tensor
at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from cloister_trainer.model.families import FAMILIES, Family
from cloister_trainer.model.tensors import renamed
from cloister_trainer.train.lora_layers import adapts_experts, lora_layers
from cloister_trainer.train.targets import read_header

_EXPERT = re.compile(r"^(?P<layer>model\.layers\.\d+)\..*experts\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight$")
_PIECE_BYTES = 16 * 2**20


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

    def of(self, expert: int = 0) -> Tensor:
        """scaling * B A of one expert, float32 [out, in]; PEFT keeps A expert by expert and B rank by rank."""
        a = self.a.view(self.experts, -1, self.a.shape[1])[expert]
        b = self.b.view(self.b.shape[0], -1, self.experts)[:, :, expert]
        return self.scaling * (b @ a)


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


def write_merged(
    base: Path, weight_files: list[str], model_type: str, deltas: Mapping[str, Delta], folder: Path
) -> Iterator[Path]:
    """Write the merged weights of the model folder `base` to `folder`, yielding each file when it is complete.

    The caller may delete a file before it asks for the next one.
    """
    from safetensors import safe_open

    folder.mkdir(parents=True, exist_ok=True)
    for name in weight_files:
        source_path, path = base / name, folder / name
        header, entries = read_header(source_path)
        with (
            safe_open(source_path, framework="pt") as tensors,
            source_path.open("rb") as source,
            path.open("wb") as out,
        ):
            out.write(header)
            for tensor, (start, end) in sorted(entries.items(), key=lambda item: item[1]):
                change = _change_of(tensor, FAMILIES[model_type], deltas)
                if change is None:
                    source.seek(len(header) + start)
                    _copy(source, out, end - start)
                else:
                    out.write(_raw(change.applied(tensors.get_tensor(tensor))))
        yield path


@dataclass(frozen=True)
class _Change:
    """What happens to one stored tensor."""

    delta: Delta
    expert: int | None = 0
    """The expert whose matrix it is; None for a tensor that holds all experts."""
    start: int = 0
    end: int | None = None
    """The rows of the live weight that the checkpoint keeps in this tensor."""

    def applied(self, weight: Tensor) -> Tensor:
        """The merged tensor, in the stored type; the sum is made in float32."""
        if self.expert is not None:
            return (weight.float() + self.delta.of(self.expert)[self.start : self.end]).to(weight.dtype)
        for expert in range(self.delta.experts):
            change = self.delta.of(expert)
            weight[expert] = (weight[expert].float() + (change.T if self.delta.transposed else change)).to(weight.dtype)
        return weight


def _change_of(stored: str, family: Family, deltas: Mapping[str, Delta]) -> _Change | None:
    live = renamed(family, stored)
    if live in deltas:
        return _Change(deltas[live], 0 if deltas[live].experts == 1 else None)
    match = _EXPERT.match(live)
    if match is None or family.experts is None or family.experts.stored is None:
        return None
    gate, up, down = family.experts.stored
    fused = family.experts.down if match["matrix"] == down else family.experts.gate_up
    delta = deltas.get(f"{match['layer']}.{fused}")
    if delta is None:
        return None
    half = delta.b.shape[0] // 2
    start, end = {gate: (0, half), up: (half, None), down: (0, None)}[match["matrix"]]
    return _Change(delta, int(match["expert"]), start, end)


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _copy(source: BinaryIO, out: BinaryIO, length: int) -> None:
    while length > 0:
        piece = source.read(min(length, _PIECE_BYTES))
        out.write(piece)
        length -= len(piece)
