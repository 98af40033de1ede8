"""Writes what the chart has in common with the packages: `python scripts/chart_files.py [--check]`.

The CustomResourceDefinition, the operator's rules, and in values.schema.json the schema of the settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cloister_api.generate import generated_files
from cloister_api.schema import structural_schema
from cloister_operator.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = "charts/cloister"
VALUES_SCHEMA = f"{CHART}/values.schema.json"
CLUSTER_ROLE = "operator/manifests/cluster-role.yaml"
PEER_LABELS = ("namespaceLabels", "podLabels")
"""What a peer of a network policy has instead of a cidr."""


def chart_files(root: Path = REPOSITORY) -> dict[str, str]:
    """The text of every file of the chart that is made from others, by its path in the repository."""
    values_schema = json.loads((root / VALUES_SCHEMA).read_text())
    values_schema["definitions"]["settings"] = settings_schema()
    return {
        f"{CHART}/files/finetunejobs.yaml": generated_files()["crds/cloister.dev_finetunejobs.yaml"],
        f"{CHART}/files/cluster-role.yaml": (root / CLUSTER_ROLE).read_text(),
        VALUES_SCHEMA: json.dumps(values_schema, indent=2, ensure_ascii=False) + "\n",
    }


def settings_schema() -> dict[str, Any]:
    """What may stand in the value `settings`. Nothing is required: the chart fills in the image."""
    schema = _strict(structural_schema(Settings))
    del schema["required"], schema["properties"]["images"]["required"]
    return schema


def _strict(node: Any) -> Any:
    """A structural schema as JSON Schema: no field that it does not name, no keyword of Kubernetes, no default."""
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key not in ("default", "format") and key[:2] != "x-"}
    for keyword in ("items", "additionalProperties"):
        if keyword in kept:
            kept[keyword] = _strict(kept[keyword])
    if "properties" in kept:
        kept["properties"] = {name: _strict(part) for name, part in kept["properties"].items()}
        kept["additionalProperties"] = False
        if "cidr" in kept["properties"]:
            kept["dependencies"] = {"cidr": {"properties": {labels: {"not": {}} for labels in PEER_LABELS}}}
    return kept


def main() -> int:
    """Write the files, or with --check name those that are stale. Returns 1 when some are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check = parser.parse_args().check
    stale = {name: text for name, text in chart_files().items() if not _is_fresh(REPOSITORY / name, text)}
    for name, text in stale.items():
        if not check:
            (REPOSITORY / name).write_text(text)
        print(f"{name} {'is stale; run make generate' if check else 'written'}")
    return 1 if stale and check else 0


def _is_fresh(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
