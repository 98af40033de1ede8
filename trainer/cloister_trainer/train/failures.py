"""What an exception in a worker means: one of our reasons and a sentence, never a library's trace."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from safetensors import SafetensorError

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason

_R = FailureReason

MORE_HOST_MEMORY = (
    "Give the workers more memory (pods.worker.resources.limits), or set training.microBatchTokens lower."
)
"""What helps whenever a worker's host memory was too little."""

_SIGNS: tuple[tuple[FailureReason, tuple[str, ...], str], ...] = (
    (
        _R.GPU_OUT_OF_MEMORY,
        ("cuda out of memory", "outofmemoryerror", "cublas_status_alloc_failed"),
        "A GPU ran out of memory. Set training.microBatchTokens lower, or training.gradientCheckpointing to Always.",
    ),
    (
        _R.OUT_OF_MEMORY,
        ("can't allocate memory", "cannot allocate memory", "defaultcpuallocator", "std::bad_alloc"),
        f"A worker ran out of host memory. {MORE_HOST_MEMORY}",
    ),
    (
        _R.GPU_FAULT,
        ("uncorrectable ecc", "device-side assert", "illegal memory access", "cuda error: unspecified launch failure"),
        "A GPU reported a fault. Have the node checked.",
    ),
    (
        _R.WORKERS_LOST,
        ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process has terminated",
         "connection refused", "socket closed"),
        "Another worker's process ended.",
    ),
    (
        _R.COLLECTIVE_TIMEOUT,
        ("timed out waiting", "watchdog caught collective", "wait timeout", "operation timeout", "timeout",
         "nccl error", "ncclremoteerror", "ncclsystemerror"),
        "A collective operation between the workers did not end. Check the network between the nodes.",
    ),
)  # fmt: skip

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

CONSEQUENCES = frozenset({_R.WORKERS_LOST, _R.COLLECTIVE_TIMEOUT, _R.INTERNAL})
"""Reasons that another rank's failure may have caused; any other reason explains the end better."""


def explain(error: BaseException, *, step: int, node: str) -> CloisterError:
    """The failure that `error` is, with the step and node where it was seen."""
    if isinstance(error, CloisterError):
        return CloisterError(
            error.reason,
            error.message,
            step=step if error.step is None else error.step,
            node=error.node or node,
        )
    reason, sentence = _classify(error)
    return CloisterError(
        reason, f"{sentence} ({type(error).__name__} on {node} after step {step}.)", step=step, node=node
    )


def _classify(error: BaseException) -> tuple[FailureReason, str]:
    for cause in _chain(error):
        if isinstance(cause, CloisterError):
            return cause.reason, cause.message
        if _is_full_disk(cause):
            return _R.LOCAL_DISK_FULL, "The local disk is full. Give the workers more ephemeral storage."
        if isinstance(cause, MemoryError):
            return _R.OUT_OF_MEMORY, f"A worker ran out of host memory. {MORE_HOST_MEMORY}"
        text = f"{type(cause).__name__}: {cause}".lower()
        for reason, signs, sentence in _SIGNS:
            if isinstance(cause, RuntimeError | ConnectionError | TimeoutError) and any(sign in text for sign in signs):
                return reason, sentence
    return _R.INTERNAL, "A worker failed unexpectedly. Its log in the run folder has the trace."


def _is_full_disk(cause: BaseException) -> bool:
    """Whether a local file could not grow. safetensors tells of it in words, with the system's error number."""
    if isinstance(cause, SafetensorError):
        return any(f"(os error {number})" in str(cause) for number in _FULL)
    return isinstance(cause, OSError) and cause.errno in _FULL


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def worst(failures: list[CloisterError]) -> CloisterError:
    """The failure that explains the others: the first that is no mere consequence, else the first."""
    return next((failure for failure in failures if failure.reason not in CONSEQUENCES), failures[0])
