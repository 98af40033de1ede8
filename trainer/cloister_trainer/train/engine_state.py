"""The engine's state by parameter name, independent of how ZeRO has spread it over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cloister_trainer.train.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


def full_state(engine: Engine, moments: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every adapter tensor, float32, under its name, and its moments under `exp_avg.<name>` and `exp_avg_sq.<name>`.

    A collective: all ranks iterate to the end. The tensors lie on the device and may be changed by the next step.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in engine.parameters.items():
        if engine.stage == 0:
            yield name, parameter.detach()
            if moments:
                for key in MOMENTS:
                    yield f"{key}.{name}", engine.inner.state[parameter][key]
            continue
        yield name, safe_get_full_fp32_param(parameter)
        if moments:
            for key in MOMENTS:
                yield f"{key}.{name}", safe_get_full_optimizer_state(parameter, key)


def snapshot(engine: Engine, keep: bool, moments: bool = True) -> dict[str, Tensor]:
    """`full_state` copied to host memory where `keep` is set, an empty dict elsewhere. A collective."""
    kept: dict[str, Tensor] = {}
    for name, tensor in full_state(engine, moments):
        if keep:
            kept[name] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    return kept


def restore(engine: Engine, step: int, read: Callable[[str], Tensor] | None, device: torch.device) -> None:
    """Set adapter and moments as `full_state` gave them after step `step`. A collective.

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
