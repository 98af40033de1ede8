"""Durations and quantities as Kubernetes writes them."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_DURATION = re.compile(r"(?:(?P<h>[0-9]+)h)?(?:(?P<m>[0-9]+)m)?(?:(?P<s>[0-9]+)s)?")
_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<suffix>[a-zA-Z]*)")
_DECIMAL = {suffix: Fraction(1000) ** power for power, suffix in enumerate(["m", "", "k", "M", "G", "T", "P", "E"], -1)}
_BINARY = {suffix: Fraction(1024) ** power for power, suffix in enumerate(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"], 1)}
_FACTORS = _DECIMAL | _BINARY


def parse_duration(text: str) -> int:
    """Seconds in `90s`, `10m` or `1h30m`. Raises ValueError for anything else."""
    found = _DURATION.fullmatch(text)
    if not found or not text:
        raise ValueError(f"{text!r} is not a length of time such as 90s, 10m or 1h30m")
    hours, minutes, seconds = (int(found[unit] or 0) for unit in "hms")
    return hours * 3600 + minutes * 60 + seconds


def format_duration(seconds: float) -> str:
    """The shortest text for a length of time, in whole seconds: 5400 becomes `1h30m`, 0 becomes `0s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if number]
    return "".join(parts) or "0s"


def parse_quantity(text: str) -> int:
    """The whole number in a quantity, rounded up as Kubernetes does: `80Gi` is 85899345920, `1500m` is 2.

    Raises ValueError for anything else, negative quantities and exponents included.
    """
    found = _QUANTITY.fullmatch(text)
    if not found or found["suffix"] not in _FACTORS:
        raise ValueError(f"{text!r} is not a quantity such as 80Gi or 500m")
    return math.ceil(Fraction(found["number"]) * _FACTORS[found["suffix"]])
