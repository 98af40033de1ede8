"""Routers of mixtures choose experts as transformers has them choose: outside autocast.

DeepSeek's and GLM's routers multiply in float32. Autocast would run that product in bf16, and then a few per cent of
the tokens visit other experts in training than where the adapter is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def keep_routers_as_stock(model: nn.Module, routers: Sequence[str]) -> None:
    """Run the modules whose names end in one of `routers` (Family.routers) outside autocast.

    Parameters, names and hooks stay, ZeRO's among them.
    """
    endings = tuple(f".{name}" for name in routers)
    for name, module in model.named_modules():
        if name.endswith(endings):
            module.forward = MethodType(_forward, module)


def _forward(router: Any, hidden: Tensor, *others: Any) -> Any:
    """What the router's class returns for `hidden` [..., width], which autocast may have made float32."""
    with torch.autocast(hidden.device.type, enabled=False):
        return type(router).forward(router, hidden.to(router.weight.dtype), *others)
