"""Runs inside an image: lists its Python and Debian packages as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess


def python_packages() -> list[dict[str, str]]:
    """Name, version and licence of every installed distribution."""
    found = []
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        stated = [metadata[key] for key in ("License-Expression", "License") if key in metadata]
        first_line = stated[0].partition("\n")[0] if stated else ""
        found.append({"name": metadata["Name"], "version": distribution.version, "licence": first_line})
    return found


def debian_packages() -> list[dict[str, str]]:
    """Name, version and architecture of every installed package."""
    keys = ("name", "version", "architecture")
    query = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    return [dict(zip(keys, line.split("\t"), strict=True)) for line in lines]


print(json.dumps({"python": python_packages(), "debian": debian_packages()}))
