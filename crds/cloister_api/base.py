"""What every API type shares: camelCase names, no unknown fields, bounded strings, cross-field rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """A cross-field rule, said once for the API server (CEL) and once for Python.

    `cel` is the expression that the CRD carries, `holds` the same predicate on the parsed model, `message` the sentence
    both of them answer with.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]


class ApiModel(BaseModel):
    """A part of the API. Immutable once parsed; written and read in camelCase; unknown fields are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise ValueError(rule.message)
        return self

    def to_api(self) -> dict[str, Any]:
        """The JSON object that Kubernetes sees: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ApiEnum(StrEnum):
    """An enum whose values are CamelCase words."""


def exactly_one(*fields: str) -> Callable[[Any], bool]:
    """A predicate: exactly one of the (snake_case) fields is present."""
    return lambda model: sum(getattr(model, field) is not None for field in fields) == 1


def at_most_one(*fields: str) -> Callable[[Any], bool]:
    """A predicate: no more than one of the (snake_case) fields is present."""
    return lambda model: sum(getattr(model, field) is not None for field in fields) <= 1


Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of a Kubernetes object (RFC 1123 subdomain)."""

ShortText = Annotated[str, Field(max_length=256)]
LongText = Annotated[str, Field(max_length=2048)]

ModelUri = Annotated[str, Field(max_length=1024, pattern=r"^(s3|pvc|file)://[^\x00-\x20\x7f]+$")]
"""A folder or object that is only read: s3://bucket/prefix, pvc://claim/path, or file:///path in local runs."""

StoreUri = Annotated[str, Field(max_length=1024, pattern=r"^(s3|file)://[^\x00-\x20\x7f]+$")]
"""A folder that is written: s3://bucket/prefix, or file:///path in local runs."""

Duration = Annotated[str, Field(max_length=32, pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", min_length=2)]
"""A length of time as Kubernetes writes it: `90s`, `10m`, `1h30m`."""

Quantity = Annotated[
    str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$", min_length=1)
]
"""A Kubernetes quantity as a string: `80Gi`, `500m`."""
