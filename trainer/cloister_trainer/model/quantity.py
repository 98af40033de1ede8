"""Kubernetes quantities in bytes, and bytes for a person."""

from __future__ import annotations

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason

UNITS: dict[str, float] = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "m": 1e-3,
}


def quantity_bytes(text: str, field: str) -> int:
    """`80Gi` as bytes. Raises SpecInvalid, naming the field, for what is not a quantity."""
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    number = text.removesuffix(unit)
    try:
        size = float(number) * UNITS.get(unit, 1)
    except ValueError:
        size = -1.0
    if not 0 < size < 2**62:
        raise CloisterError(FailureReason.SPEC_INVALID, f"{field} is {text!r}; a quantity such as 80Gi was expected.")
    return int(size)


def readable(size: int) -> str:
    """Bytes as GiB, MiB or KiB with three digits."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
