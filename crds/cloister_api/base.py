"""What every API type shares: camelCase names, no unknown fields, bounded strings, cross-field rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

RULE_BROKEN = "rule_broken"
"""Type of the pydantic error that carries the sentences of broken rules, in its context under `sentences`."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Rule:
    """A cross-field rule, said once for the API server (CEL) and once for Python.

    `cel` is the expression that the CRD carries, `holds` the same predicate on the parsed model, `message` the sentence
    both of them answer with.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]

    def to_api(self) -> dict[str, Any]:
        """The rule as an entry of x-kubernetes-validations."""
        return {"rule": self.cel, "message": self.message}


def check_rules(rules: Iterable[Rule], value: Value) -> Value:
    """`value`, when all rules hold for it. Raises one PydanticCustomError with the sentences of all that do not."""
    broken = [rule.message for rule in rules if not rule.holds(value)]
    if broken:
        raise PydanticCustomError(RULE_BROKEN, "{text}", {"text": "; ".join(broken), "sentences": broken})
    return value


class ApiModel(BaseModel):
    """A part of the API. Immutable once parsed; written and read in camelCase; unknown fields are errors.

    The string below a field is its description, read from the source only when something is generated
    (`cloister_api.schema`): reading it at import, as pydantic can, would double every command's start-up.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, defer_build=True
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        return check_rules(self.rules, self)

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


_BUCKET = r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/|$)"
_CLAIM = r"pvc://[a-z0-9][a-z0-9.-]*(/|$)"
MODEL_URI_PATTERN = rf"^({_BUCKET}|{_CLAIM}|file:///)[^\x00-\x20\x7f]*$"
STORE_URI_PATTERN = rf"^({_BUCKET}|file:///)[^\x00-\x20\x7f]*$"
URI_PATTERNS = (MODEL_URI_PATTERN, STORE_URI_PATTERN)
"""The authority of a URI is a name alone: no user, no password, no port."""
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
LABEL_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
MODULE_PATTERN = r"^[A-Za-z0-9_.*]+$"
DURATION_PATTERN = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$"
URL_PATTERN = r"^https?://[^/\x00-\x20\x7f][^\x00-\x20\x7f]*$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"

EXPECTED = {
    MODEL_URI_PATTERN: "s3://bucket/path, pvc://claim/path or file:///path",
    STORE_URI_PATTERN: "s3://bucket/path or file:///path",
    NAME_PATTERN: "the name of a Kubernetes object (lower-case letters, digits, - and .)",
    LABEL_PATTERN: "lower-case letters, digits and -, starting with a letter",
    LABEL_VALUE_PATTERN: "the value of a Kubernetes label (letters, digits, -, _ and .)",
    MODULE_PATTERN: "a module's name (letters, digits, _, . and *)",
    DURATION_PATTERN: "a length of time such as 90s, 10m or 1h30m",
    URL_PATTERN: "https://host:port or http://host:port",
    QUANTITY_PATTERN: "a quantity such as 80Gi or 500m",
}
"""What each pattern asks for, in words for a person."""

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=NAME_PATTERN)]
"""The name of a Kubernetes object (RFC 1123 subdomain)."""

ShortText = Annotated[str, Field(max_length=256)]

Url = Annotated[str, Field(max_length=256, pattern=URL_PATTERN)]
"""Where an HTTP server listens."""

Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP or UDP port."""

_NO_DOTS = Rule(
    r"!self.matches('/[.][.]?(/|$)')",
    "a URI has no . or .. in its path",
    lambda uri: not {".", ".."} & set(uri.split("/")[1:]),
)
_PLAIN_PATH = (
    Field(json_schema_extra={"x-kubernetes-validations": [_NO_DOTS.to_api()]}),
    AfterValidator(lambda uri: check_rules([_NO_DOTS], uri)),
)

ModelUri = Annotated[str, Field(max_length=1024, pattern=MODEL_URI_PATTERN), *_PLAIN_PATH]
"""A folder or object that is only read: s3://bucket/prefix, pvc://claim/path, or file:///path in local runs."""

StoreUri = Annotated[str, Field(max_length=1024, pattern=STORE_URI_PATTERN), *_PLAIN_PATH]
"""A folder that is written: s3://bucket/prefix, or file:///path in local runs."""

Duration = Annotated[str, Field(min_length=2, max_length=32, pattern=DURATION_PATTERN)]
"""A length of time as Kubernetes writes it: `90s`, `10m`, `1h30m`."""

Quantity = Annotated[str, Field(min_length=1, max_length=32, pattern=QUANTITY_PATTERN)]
"""A Kubernetes quantity as a string: `80Gi`, `500m`."""
