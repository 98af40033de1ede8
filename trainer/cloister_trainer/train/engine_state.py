"""The engine's state by parameter name, independent of how ZeRO has spread it over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cloister_trainer.train.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
GATHERED_ELEMENTS = 2**24
"""At a time, of all ranks together: 64 MiB, for which the plan's memory has room."""


def snapshot(engine: Engine, keep: bool, moments: bool = True) -> dict[str, Tensor]:
    """Copies in host memory, float32, of what the optimizer updates. A collective; an empty dict where not kept.

    Every adapter tensor is there under its name, and its moments under `exp_avg.<name>` and `exp_avg_sq.<name>`. `keep`
    is set on rank 0 and nowhere else. The loop waits for this, so that whole flat buffers are copied, and the tensors
    are views of the copies: one by one they would be three collectives for each of hundreds of tensors.
    """
    kept: dict[str, Tensor] = {}
    for master, places in zip(engine.masters(), _places(engine), strict=True):
        flats = {"": master.detach()}
        if moments:
            flats |= {f"{key}.": engine.inner.state[master][key] for key in MOMENTS}
        for prefix, flat in flats.items():
            copy = _gathered(flat.flatten(), keep) if engine.stage > 0 else _copied(flat.flatten(), keep)
            if copy is not None:
                kept |= {f"{prefix}{place.name}": place.tensor(copy) for place in places}
    return kept


def _copied(flat: Tensor, keep: bool) -> Tensor | None:
    return flat.to("cpu", torch.float32, copy=True).unsqueeze(0) if keep else None


def _gathered(flat: Tensor, keep: bool) -> Tensor | None:
    """The flats of all ranks, float32 [ranks, elements] in host memory, where `keep` is set."""
    ranks = dist.get_world_size()
    if ranks == 1:
        return _copied(flat, keep)
    copy = torch.empty(ranks, flat.numel()) if keep else None
    size = max(1, GATHERED_ELEMENTS // ranks)
    for start in range(0, flat.numel(), size):
        own = flat[start : start + size]
        pieces = [torch.empty_like(own) for _ in range(ranks)] if keep else None
        dist.gather(own, pieces, dst=0)
        if copy is not None and pieces is not None:
            for row, piece in zip(copy, pieces, strict=True):
                row[start : start + size].copy_(piece)
    return copy


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies in the flats of all ranks, [ranks, elements]."""

    name: str
    shape: torch.Size
    start: int
    size: int
    in_every_flat: bool = False
    """Each rank's flat holds `size` elements of it from `start` on, the last ones filled up: stage 3. Else it is whole
    where the flats lie one after another."""

    def tensor(self, flats: Tensor) -> Tensor:
        """The parameter, a view where it lies in one piece."""
        if self.in_every_flat:
            elements = flats[:, self.start : self.start + self.size].reshape(-1)[: self.shape.numel()]
        else:
            elements = flats.view(-1)[self.start : self.start + self.size]
        return elements.view(self.shape)


def _places(engine: Engine) -> list[list[_Place]]:
    """The parameters of each master."""
    if engine.stage == 0:
        return [[_Place(name, p.shape, 0, p.numel())] for name, p in engine.parameters.items()]
    zero, names = engine.deepspeed.optimizer, {id(parameter): name for name, parameter in engine.parameters.items()}
    if engine.stage == 3:

        def place(p: nn.Parameter) -> _Place:
            _, start, size = zero.grad_position[zero.get_param_id(p)]
            return _Place(names[id(p)], p.ds_shape, start, size, in_every_flat=True)  # type: ignore[attr-defined]

        return [[place(p) for p in group] for group in zero.fp16_groups]
    return [
        [_Place(names[id(p)], p.shape, start, p.numel()) for p, start in zip(group, starts, strict=True)]
        for group, starts in zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)
    ]


def restore(engine: Engine, step: int, read: Callable[[str], Tensor] | None, device: torch.device) -> None:
    """Set adapter and moments as `snapshot` gave them after step `step`. A collective.

    `read` gives a tensor by name on rank 0 and is None elsewhere.
    """
    _create_moments(engine, step)
    for name, parameter in engine.parameters.items():
        set_adapter_tensor(engine, parameter, _broadcast(read, name, parameter, device))
        for key in MOMENTS:
            _set_moment(engine, parameter, key, _broadcast(read, f"{key}.{name}", parameter, device))


def set_adapter(engine: Engine, read: Callable[[str], Tensor] | None, device: torch.device) -> None:
    """Set the adapter's tensors alone, moments untouched. A collective."""
    for name, parameter in engine.parameters.items():
        set_adapter_tensor(engine, parameter, _broadcast(read, name, parameter, device))


def set_adapter_tensor(engine: Engine, parameter: nn.Parameter, value: Tensor) -> None:
    """Set the float32 master and the live parameter: the engine would else compute once with the old one."""
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if engine.stage == 3:
        safe_set_local_fp32_param(parameter, _own_part(parameter, value))
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                parameter.data.copy_(value)
        return
    if engine.stage > 0:
        safe_set_full_fp32_param(parameter, value)
    parameter.data.copy_(value)


def _set_moment(engine: Engine, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if engine.stage == 0:
        engine.inner.state[parameter][key].copy_(value)
    elif engine.stage == 3:
        safe_set_local_optimizer_state(parameter, _own_part(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a stage-3 parameter: equal parts, the last one filled up with zeros."""
    size: int = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]  # set by zero.Init
    start = size * dist.get_rank()
    flat = value.flatten()
    part = torch.zeros(size, dtype=value.dtype, device=value.device)
    own = flat[start : start + size]
    part[: own.numel()] = own
    return part


def _create_moments(engine: Engine, step: int) -> None:
    """AdamW makes its state at the first step; a restored run needs it before."""
    for master in engine.masters():
        state = engine.inner.state[master]
        state["step"] = torch.tensor(float(step), dtype=torch.float32)
        for key in MOMENTS:
            state.setdefault(key, torch.zeros_like(master))
    if engine.stage in {1, 2}:
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _broadcast(
    read: Callable[[str], Tensor] | None, name: str, parameter: nn.Parameter, device: torch.device
) -> Tensor:
    shape = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
    if read is not None:
        value = read(name).to(device, torch.float32).reshape(shape).contiguous()
    else:
        value = torch.empty(shape, dtype=torch.float32, device=device)
    if dist.get_world_size() > 1:
        dist.broadcast(value, src=0)
    return value
