"""Sentences for what is wrong with a job: the field, what was expected, what was found, what to do."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cloister_api.base import EXPECTED, RULE_BROKEN, URI_PATTERNS, ApiModel
from cloister_api.job import FineTuneJob
from cloister_api.schema import Schema, structural_schema
from cloister_api.text import masked, printable
from cloister_api.yaml_tree import Path, dotted, plain_value

_SHOWN_CHARACTERS = 80
_INT_OR_STRING = "x-kubernetes-int-or-string"


@dataclass(frozen=True)
class Problem:
    """What is wrong at a path of the job."""

    path: Path
    sentence: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.sentence}" if self.path else self.sentence


Model = TypeVar("Model", bound=ApiModel)


def checked(model: type[Model], given: Any) -> Model | list[Problem]:
    """The JSON value `given` as a `model`, or what is wrong with it (never an empty list)."""
    try:
        return model.model_validate_json(json.dumps(given), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        return problems_of(error, given, model)


def problems_of(error: ValidationError, given: Any, model: type[ApiModel] = FineTuneJob) -> list[Problem]:
    """One problem for each wrong field of the object `given`, in the order of its fields."""
    problems: dict[tuple[Path, int], Problem] = {}
    for details in error.errors(include_url=False):
        path, schema, parent = _follow(details["loc"], structural_schema(model))
        for number, sentence in enumerate(_sentences(details, path, schema, parent, given)):
            problems.setdefault((path, number), Problem(path, sentence))
    return list(problems.values())


def expectation(schema: Schema) -> str:
    """What a field takes, in words: `a whole number from 1 to 512`."""
    if "enum" in schema:
        return ("one of " if len(schema["enum"]) > 1 else "") + ", ".join(schema["enum"])
    if schema.get(_INT_OR_STRING):
        return "a quantity such as 8, 500m or 64Gi"
    if schema["type"] in ("integer", "number"):
        return ("a whole number" if schema["type"] == "integer" else "a number") + _range(schema)
    if schema["type"] == "string":
        return EXPECTED.get(schema.get("pattern", ""), "text")
    return {"boolean": "true or false", "array": "a list", "object": "a mapping"}[schema["type"]]


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low:g}"
    open_low, open_high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if not open_low and not open_high:
        return f" from {low:g} to {high:,}" if isinstance(high, int) else f" from {low:g} to {high:g}"
    return f" {'above' if open_low else 'of at least'} {low:g} and {'below' if open_high else 'at most'} {high:g}"


def _follow(location: tuple[str | int, ...], schema: Schema) -> tuple[Path, Schema, Schema]:
    """The path, the schema there (empty for an unknown field) and the schema around it, for pydantic's location."""
    parent = Schema()
    path: list[str | int] = []
    for part in location:
        inner = schema.get("properties", {}).get(part) or schema.get("additionalProperties") or schema.get("items")
        if inner is None and "properties" not in schema:
            break
        path.append(part)
        schema, parent = inner or {}, schema
    return tuple(path), schema, parent


def _sentences(details: ErrorDetails, path: Path, schema: Schema, parent: Schema, given: Any) -> list[str]:
    kind = details["type"]
    if kind == RULE_BROKEN:
        return list(details["ctx"]["sentences"])
    if kind == "extra_forbidden":
        return [_unknown_field(str(path[-1]), list(parent["properties"]))]
    if kind == "missing":
        return [f"missing; expected {expectation(schema)}"]
    found = _value_at(given, path)
    if isinstance(found, str) and kind in ("string_too_long", "string_too_short"):
        bound = "most" if kind == "string_too_long" else "least"
        limit = details["ctx"]["max_length" if kind == "string_too_long" else "min_length"]
        return [f"expected at {bound} {limit:,} {'character' if limit == 1 else 'characters'}, found {len(found):,}"]
    if kind in ("too_long", "too_short"):
        bound = "most" if kind == "too_long" else "least"
        limit = details["ctx"]["max_length" if kind == "too_long" else "min_length"]
        return [f"expected at {bound} {limit:,} {'entry' if limit == 1 else 'entries'}, found {len(found):,}"]
    return [f"expected {expectation(schema)}, found {_shown(found)}{_hint(found, schema)}"]


def _unknown_field(name: str, known: list[str]) -> str:
    exact = [field for field in known if field.lower() == name.replace("_", "").replace("-", "").lower()]
    near = exact or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known are {', '.join(known)}"


def _hint(found: Any, schema: Schema) -> str:
    """What to do, where that is clear from what was found."""
    if isinstance(found, str) and schema.get("pattern") in URI_PATTERNS and masked(found) != found:
        return "; keys belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the job's Secret, never in a URI"
    if "enum" in schema:
        if not isinstance(found, str):
            return ""
        exact = [value for value in schema["enum"] if value.lower() == found.lower()]
        near = exact or difflib.get_close_matches(found, schema["enum"], n=1)
        return f"; did you mean {near[0]}?" if near else ""
    wants_text = schema.get("type") == "string" or schema.get(_INT_OR_STRING)
    if wants_text and isinstance(found, bool | int | float):
        return "; put it in quotes"
    wants_plain = {"integer": (int,), "number": (int, float), "boolean": (bool,)}.get(schema.get("type", ""), ())
    if isinstance(found, str) and type(plain_value(found)) in wants_plain:
        return "; remove the quotes"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {json.dumps(value)}"
    if isinstance(value, str):
        shown = printable(masked(value))
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"
        return f"the text {json.dumps(shown, ensure_ascii=False)}"
    return f"the number {value}"


def _value_at(given: Any, path: Path) -> Any:
    for part in path:
        given = given[part]
    return given
