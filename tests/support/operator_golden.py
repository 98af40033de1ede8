"""The operator's golden files: a FineTuneJob and the administrator's settings in, the children out.

`python -m support.operator_golden` (with `tests` on PYTHONPATH) writes every children.yaml; `--check` names stale ones.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cloister_api.yaml_tree import read_documents
from cloister_operator.decide.actions import Create
from cloister_operator.names import Step
from cloister_operator.settings_file import parse_settings
from support.operator_values import PREPARED, SETTINGS_YAML
from support.operator_world import World

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "operator"


def cases() -> list[Path]:
    """The folders with a job each."""
    return sorted(path.parent for path in FOLDER.glob("*/job.yaml"))


def children(case: Path) -> str:
    """Every child of the case's job, as YAML, in the order in which they are made."""
    settings = case / "settings.yaml"
    admin = parse_settings(settings.read_text() if settings.exists() else SETTINGS_YAML, str(settings))
    (job,) = read_documents((case / "job.yaml").read_text())
    return dump(journey(World(admin=admin, job=job.value)))


def journey(world: World) -> list[dict[str, Any]]:
    """Every child that a job gets on its way to a published adapter, as long as nothing keeps it."""
    made: list[dict[str, Any]] = []
    for _ in range(10):
        decision = world.step()
        made += [action.object for action in decision.actions if isinstance(action, Create)]
        if ("Job", f"{world.job['metadata']['name']}-prepare") in world.objects and not world.status.plan:
            world.succeed(Step.PREPARE, PREPARED)
        elif world.find("RayJob"):
            world.ray("SUCCEEDED")
    return made


def dump(documents: list[dict[str, Any]]) -> str:
    """Kubernetes objects as one YAML stream."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.ignore_aliases = lambda data: True
    yaml.representer.add_representer(str, _text)
    yaml.explicit_start = True
    stream = io.StringIO("# Written by make golden.\n")
    stream.seek(0, io.SEEK_END)
    yaml.dump_all(documents, stream)
    return stream.getvalue()


def _text(representer: Any, value: str) -> Any:
    """Text of several lines as such, so that a difference can be read."""
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


def main() -> int:
    """Write the files, or with --check name those that are stale."""
    stale = [case for case in cases() if not _is_fresh(case)]
    for case in stale:
        if "--check" not in sys.argv:
            (case / "children.yaml").write_text(children(case))
        print(f"{case.name}/children.yaml {'is stale; run make golden' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


def _is_fresh(case: Path) -> bool:
    path = case / "children.yaml"
    return path.exists() and path.read_text() == children(case)


if __name__ == "__main__":
    sys.exit(main())
