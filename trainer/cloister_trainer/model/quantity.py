"""Kubernetes quantities in bytes, and bytes for a person."""

from __future__ import annotations

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.units import parse_quantity


def quantity_bytes(text: str, field: str) -> int:
    """`80Gi` as bytes, read as the API reads it. Raises SpecInvalid, naming the field, for none or no bytes."""
    try:
        size = parse_quantity(text)
    except ValueError:
        size = 0
    if size == 0:
        raise CloisterError(FailureReason.SPEC_INVALID, f"{field} is {text!r}; a quantity such as 80Gi was expected.")
    return size


def readable(size: int) -> str:
    """Bytes as GiB, MiB or KiB with three digits."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
