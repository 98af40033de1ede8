"""Words of YAML and what sigs.k8s.io/yaml 1.6, and so kubectl, makes of them; data, to be asked of both readers."""

from __future__ import annotations

NUMBERS: dict[str, float] = {
    "2e-4": 0.0002,
    "1e5": 100000,
    "1E5": 100000,
    "1.": 1,
    ".5": 0.5,
    "-.5": -0.5,
    "+3": 3,
    "-0": 0,
    "010": 8,
    "0o10": 8,
    "08": 8,
    "09.5": 9.5,
    "0x1F": 31,
    "-0x10": -16,
    "0b11": 3,
    "1_000": 1000,
    "1_0.5": 10.5,
    "9223372036854775807": 9223372036854775807,
}
BOOLEANS = {
    **dict.fromkeys(("y", "Yes", "on", "ON", "true", "TRUE"), True),
    **dict.fromkeys(("n", "No", "off", "OFF", "false", "False"), False),
}
NULLS = ["", "~", "null", "Null", "NULL"]
WORDS = [
    "1e400",
    "9" * 5000,
    "-0x" + "f" * 5000,
    "12:30",
    "1:2:3",
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "0x",
    "0b2",
    "1,000",
    "_1",
    "+",
    "-",
    ".",
    "1e",
    "tRue",
]
"""They only look like a number or a boolean, and are text."""
