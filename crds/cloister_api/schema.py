"""OpenAPI schemas of API types in the form that a CustomResourceDefinition takes: structural, everything in place.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from cloister_api.base import ApiModel

Schema = dict[str, Any]

_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "properties",
    "additionalProperties",
    "items",
    _INT_OR_STRING,
    _PRESERVE,
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
"""Keywords of a schema, in the order they are written."""


@cache
def structural_schema(model: type[ApiModel]) -> Schema:
    """The structural schema of `model`: descriptions, bounds, defaults, enums and CEL rules; no references, no null."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithDescriptionsAndRules)
    return _structural(schema, schema.get("$defs", {}))


@cache
def field_descriptions(model: type[ApiModel]) -> dict[str, str]:
    """The string below each field of `model`, by the field's name in Python, on one line."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        for node in _classes(cls.__module__).get(cls.__qualname__, []):
            found |= _strings_below_fields(node)
    return {name: text for name, text in found.items() if name in model.model_fields}


@cache
def _classes(module: str) -> dict[str, list[ast.ClassDef]]:
    if not module.startswith("cloister_"):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: [node] for node in tree.body if isinstance(node, ast.ClassDef)}


def _strings_below_fields(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


class _WithDescriptionsAndRules(GenerateJsonSchema):
    """pydantic's own generator, with the strings below fields as descriptions and each model's rules as CEL."""

    def model_schema(self, schema: Any) -> Schema:
        rendered = super().model_schema(schema)
        model: type[ApiModel] = schema["cls"]
        for name, text in field_descriptions(model).items():
            rendered["properties"][model.model_fields[name].alias or name]["description"] = text
        if model.rules:
            rendered["x-kubernetes-validations"] = [rule.to_api() for rule in model.rules]
        return rendered


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with references and unions resolved, and only keywords that a structural schema knows."""
    node = _resolved(node, definitions)
    if "const" in node:
        node["enum"] = [node["const"]]
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            node |= {bound: node[exclusive], exclusive: True}
    if node.get("type") in ("integer", "number") and not node.get(_INT_OR_STRING):
        node["format"] = {"integer": "int64", "number": "double"}[node["type"]]
    if "properties" in node:
        node["properties"] = {name: _structural(part, definitions) for name, part in node["properties"].items()}
    for keyword in ("items", "additionalProperties"):
        if isinstance(node.get(keyword), dict):
            node[keyword] = _structural(node[keyword], definitions)
        else:
            node.pop(keyword, None)
    _set_default(node)
    return {keyword: node[keyword] for keyword in _KEPT if keyword in node}


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with its reference followed and its union taken apart; what stands beside them wins."""
    node = dict(node)
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            target = definitions[node.pop("$ref").removeprefix("#/$defs/")]
            node = {**target, **node}
            continue
        choices = [choice for choice in node.pop("anyOf") if choice.get("type") != "null"]
        node = {**choices[0], **node} if len(choices) == 1 else _int_or_string(choices, node)
    return node


def _int_or_string(choices: list[Schema], beside: Schema) -> Schema:
    """A union of an integer and a string: the only union of types that a structural schema has."""
    if not beside.get(_INT_OR_STRING) or {choice["type"] for choice in choices} != {"integer", "string"}:
        raise TypeError(f"only one type a field; found {choices}")
    merged = {**choices[0], **choices[1], **beside}
    del merged["type"]
    return merged


def _set_default(node: Schema) -> None:
    """An object that may be left out has its fields' defaults as its own: the API server checks rules against them."""
    if node.get("default") is None:
        node.pop("default", None)
    elif node.get("type") == "object":
        parts = node.get("properties", {}).items()
        node["default"] = {name: part["default"] for name, part in parts if "default" in part}
        if not node["default"]:
            del node["default"]
