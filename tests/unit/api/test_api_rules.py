"""Every rule between fields, kept and broken, and what may change in a job that exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import ValidationError

from cloister_api.base import RULE_BROKEN, ApiModel
from cloister_api.crd import immutability_rules
from cloister_api.job import MUTABLE_FIELDS, FineTuneJob, FineTuneJobSpec
from cloister_api.schema import Schema, structural_schema
from support.api_jobs import OTHER_VALUES, RULE_CASES, SMALLEST, RuleCase, job_with


def broken_rules(job: dict[str, object]) -> list[str]:
    """The sentences of the rules that a job breaks; any other problem fails the test."""
    try:
        FineTuneJob.model_validate(job)
    except ValidationError as error:
        assert {details["type"] for details in error.errors()} == {RULE_BROKEN}, error
        return [sentence for details in error.errors() for sentence in details["ctx"]["sentences"]]
    return []


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_a_rule_answers_with_its_sentence(case: RuleCase) -> None:
    assert broken_rules(job_with(case.changes)) == ([case.sentence] if case.sentence else [])


def test_every_rule_has_a_case_that_breaks_it() -> None:
    tested = {case.sentence for case in RULE_CASES}
    assert {message for _, message in rules(structural_schema(FineTuneJobSpec))} <= tested


def test_all_broken_rules_are_told_at_once() -> None:
    job = job_with({"spec.dataset.sources": [{"uri": "s3://d/a", "weight": 0}], "spec.dataset.tooLong": "Split"})
    assert len(broken_rules(job)) == 3


def test_the_api_server_and_python_say_the_same_sentence() -> None:
    said = {message for _, message in rules(structural_schema(FineTuneJobSpec))}
    for model in models(FineTuneJobSpec):
        assert {rule.message for rule in model.rules} <= said


@pytest.mark.parametrize("field", sorted(OTHER_VALUES))
def test_every_field_of_the_spec_is_either_mutable_or_guarded(field: str) -> None:
    mutable = {FineTuneJobSpec.model_fields[name].alias for name in MUTABLE_FIELDS}
    guards = [rule for rule in immutability_rules() if rule["fieldPath"] == f".{field}"]
    assert len(guards) == (0 if field in mutable else 1)
    for guard in guards:
        assert guard["message"] == f"spec.{field} cannot be changed once the job is made; make a new job"
        assert f"self.{field} == oldSelf.{field}" in guard["rule"]
        optional = FineTuneJob.model_validate(SMALLEST).spec.to_api().get(field) in (None, {})
        assert ("has(" in guard["rule"]) == (optional or field == "pods")


def test_other_values_cover_the_spec_and_differ() -> None:
    assert set(OTHER_VALUES) == {field.alias for field in FineTuneJobSpec.model_fields.values()}
    smallest = FineTuneJob.model_validate(SMALLEST)
    for field, value in OTHER_VALUES.items():
        assert FineTuneJob.model_validate(job_with({f"spec.{field}": value})) != smallest


def test_what_may_change_is_what_the_design_says() -> None:
    mutable = {FineTuneJobSpec.model_fields[name].alias for name in MUTABLE_FIELDS}
    assert mutable == {"suspend", "hold", "ttlSecondsAfterFinished", "activeDeadlineSeconds"}


def rules(schema: Schema) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield rule["rule"], rule["message"]
    parts = [schema.get("items"), schema.get("additionalProperties"), *schema.get("properties", {}).values()]
    for part in filter(None, parts):
        yield from rules(part)


def models(model: type[ApiModel]) -> Iterator[type[ApiModel]]:
    """`model` and all models in its fields."""
    yield model
    pending = [field.annotation for field in model.model_fields.values()]
    while pending:
        annotation = pending.pop()
        pending += get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, ApiModel):
            yield from models(annotation)
