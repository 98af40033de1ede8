"""What Ray's own errors mean for the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.train.failures import MORE_HOST_MEMORY

LOW_ON_MEMORY = "low on memory"
"""In the words of Ray's memory monitor, which ends a process before the kernel does."""


@contextmanager
def lost_with_ray() -> Iterator[None]:
    """When Ray does not answer, the workers are lost."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise CloisterError(
            FailureReason.WORKERS_LOST, f"Ray no longer answers the driver ({type(error).__name__})."
        ) from None


def end_of_workers(error: BaseException) -> CloisterError:
    """What Ray Train says of the end of a start; ranks' own messages tell it better where they came through."""
    if isinstance(error, ControllerError):
        cause = type(error.controller_failure).__name__
        return CloisterError(FailureReason.WORKERS_LOST, f"Ray could not start the workers ({cause}).")
    if not isinstance(error, WorkerGroupError):
        what = f"Ray lost the worker group or its controller ({type(error).__name__})."
        return CloisterError(FailureReason.WORKERS_LOST, what)
    lost = ", ".join(str(rank) for rank in sorted(error.worker_failures))
    if LOW_ON_MEMORY in str(error):
        return CloisterError(
            FailureReason.OUT_OF_MEMORY,
            f"Ray ended the worker processes of rank {lost} because their pod had almost no memory left. "
            f"{MORE_HOST_MEMORY}",
        )
    return CloisterError(FailureReason.WORKERS_LOST, f"The worker processes of rank {lost} ended without saying why.")
