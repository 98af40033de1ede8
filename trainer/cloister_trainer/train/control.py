"""Decisions that depend on a clock or a signal, shared by all ranks with one small all-reduce a step."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Wishes:
    """What one rank would like to happen after its current step."""

    checkpoint: bool = False
    interrupt: bool = False
    """The driver asked to stop."""
    evict: bool = False
    """This process was asked to go."""

    def __or__(self, other: Wishes) -> Wishes:
        return Wishes(self.checkpoint or other.checkpoint, self.interrupt or other.interrupt, self.evict or other.evict)

    def __bool__(self) -> bool:
        return self.checkpoint or self.interrupt or self.evict


@dataclass(frozen=True)
class StepResult:
    """What all ranks know of a step: the same values on each."""

    step: int
    loss_sum: float
    """Sum of the cross-entropy over the global batch's label tokens."""
    grad_norm: float
    wishes: Wishes
    """A wish holds when any rank has it."""
    seconds: float
    """From the step before to this one, on the average of the ranks."""


@dataclass(frozen=True)
class _Posted:
    step: int
    vector: Tensor
    """float64 [6] in host memory: loss sum, gradient norm, one count for each wish, and seconds."""
    work: dist.Work | None
    copied: torch.cuda.Event | None


class Control:
    """Posts a step's sums and wishes, to be read one step later: no step waits for the network or the device."""

    def __init__(self, world_size: int, device: torch.device) -> None:
        self._world_size, self._device = world_size, device
        self._posted: deque[_Posted] = deque()
        self._posted_at = time.monotonic()

    def __len__(self) -> int:
        """Steps posted and not yet read."""
        return len(self._posted)

    def post(self, step: int, loss_sum: Tensor, grad_norm: Tensor | float, wishes: Wishes) -> None:
        """Start the all-reduce of step `step`. `loss_sum` is this rank's; `grad_norm` is the same on all ranks."""
        seconds, self._posted_at = time.monotonic() - self._posted_at, time.monotonic()
        own = [wishes.checkpoint, wishes.interrupt, wishes.evict, seconds / self._world_size]
        flags = torch.tensor(own, dtype=torch.float64)
        norm = torch.as_tensor(grad_norm, dtype=torch.float64, device=self._device) / self._world_size
        vector = torch.cat((loss_sum.double().reshape(1), norm.reshape(1), flags.to(self._device, non_blocking=True)))
        work = dist.all_reduce(vector, async_op=True) if self._world_size > 1 else None
        if self._device.type == "cuda":
            self._posted.append(_copied_to_host(step, vector, work))
        else:
            self._posted.append(_Posted(step, vector, work, None))

    def read(self) -> StepResult:
        """The oldest posted step's result; waits for it when it is still under way."""
        posted = self._posted.popleft()
        if posted.copied is not None:
            posted.copied.synchronize()
        elif posted.work is not None:
            posted.work.wait()
        loss_sum, grad_norm, checkpoint, interrupt, evict, seconds = posted.vector.tolist()
        return StepResult(posted.step, loss_sum, grad_norm, Wishes(checkpoint > 0, interrupt > 0, evict > 0), seconds)


def _copied_to_host(step: int, vector: Tensor, work: dist.Work | None) -> _Posted:
    """Queue the copy behind the all-reduce on the device's stream; the host goes on."""
    if work is not None:
        work.wait()
    host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
    host.copy_(vector, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return _Posted(step, host, None, copied)
