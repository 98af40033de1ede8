"""docs/coming-from.md: fields that exist, defaults that hold; TRL is installed here, and is asked for its names."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from peft import LoraConfig
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from cloister_api.crd import root_schema
from support.pages import ROOT

PAGE = (ROOT / "docs" / "coming-from.md").read_text()
TOOLS = ("TRL: SFTConfig, SFTTrainer, LoraConfig", "Axolotl", "LLaMA-Factory")


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a table: their name and default, our field and default; empty where there is none."""

    tool: str
    name: str
    default: str
    field: str
    our_default: str

    def __str__(self) -> str:
        return f"{self.tool.partition(':')[0]} {self.name}"


def lines(tool: str) -> list[Line]:
    chapter = PAGE.partition(f"\n## {tool}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in chapter.splitlines() if "| `" in row]
    return [Line(tool, *row[:4]) for row in cells]


ALL = [line for tool in TOOLS for line in lines(tool)]


def schema_of(path: str) -> dict[str, Any]:
    """The schema of a field below spec, `[]` standing for a list's items. KeyError when there is none."""
    found: dict[str, Any] = root_schema()["properties"]["spec"]
    for part in path.split("."):
        found = found["properties"][part.removesuffix("[]")]
        found = found["items"] if part.endswith("[]") else found
    return found


def trl_defaults() -> Iterator[tuple[str, Any]]:
    """Every name of SFTTrainer, SFTConfig and LoraConfig, with its default."""
    from trl import SFTConfig, SFTTrainer

    for name, parameter in inspect.signature(SFTTrainer.__init__).parameters.items():
        yield name, parameter.default
    for config in (SFTConfig, LoraConfig):
        for field in dataclasses.fields(config):
            made = field.default_factory
            yield field.name, field.default if made is dataclasses.MISSING else made()


def test_the_tables_are_long() -> None:
    assert [len(lines(tool)) >= 30 for tool in TOOLS] == [True] * 3
    assert len({(line.tool, line.name) for line in ALL}) == len(ALL)


@pytest.mark.parametrize("line", [each for each in ALL if each.field], ids=str)
def test_a_field_is_one_of_the_schema_with_the_default_that_is_said(line: Line) -> None:
    default = schema_of(line.field).get("default")
    if isinstance(default, dict):
        default = None  # an object of defaults; its fields have their own
    if line.our_default:
        assert line.our_default == written(default)
    else:
        assert default is None


def written(value: Any) -> str:
    """As YAML and the reference page write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("line", lines(TOOLS[0]), ids=str)
def test_a_name_of_trl_exists_and_has_the_default_that_is_said(line: Line) -> None:
    known = dict(trl_defaults())
    assert line.name in known
    if line.default:
        assert line.default == str(known[line.name])


def test_loraconfig_alone_reaches_two_projections_of_a_llama() -> None:
    assert sorted(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["llama"]) == ["q_proj", "v_proj"]


def test_every_name_in_the_traps_is_a_field_of_ours_or_theirs() -> None:
    theirs = {line.name for line in ALL}
    traps = PAGE.partition("\n## The traps\n")[2]
    for path in re.findall(r"`([a-z][A-Za-z]+\.[A-Za-z.]+)(?:: [^`]*)?`", traps):
        assert schema_of(path), path
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:: [^`]*)?`", traps):
        assert name in theirs or name in ("reduce_lr_on_plateau", "qkv_proj", "gate_up_proj"), name
