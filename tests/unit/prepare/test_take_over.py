"""Whose trained adapter may be taken over: what trained it was shut in no less than this job is to be."""

from __future__ import annotations

from typing import Any

import pytest

from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.prepare.take_over import shut_in
from cloister_trainer.records import Checks

PROVEN = {"processes": 4, "controlAnswered": 4, "canaryRefused": 4}


def run_with(egress: str, *, required: bool = True) -> Run:
    spec: dict[str, Any] = {
        "model": {"uri": "s3://models/m"},
        "dataset": {"uri": "s3://data/d.jsonl"},
        "output": {"uri": "s3://adapters/a"},
        "network": {"egress": egress},
    }
    settings = RunSettings(require_enforced_egress=required)
    return Run(
        uid="11111111-2222-3333-4444-555555555555",
        namespace="legal",
        name="x",
        spec=FineTuneJobSpec.model_validate(spec),
        settings=settings,
    )


@pytest.mark.parametrize(
    ("run", "other", "proof", "taken"),
    [
        (run_with("Restricted"), run_with("Restricted"), PROVEN, True),
        (run_with("Restricted"), run_with("Open"), {}, False),
        (run_with("Restricted", required=False), run_with("Open"), {}, False),
        (run_with("Restricted"), run_with("Restricted", required=False), {}, False),
        (run_with("Restricted"), run_with("Restricted", required=False), PROVEN | {"canaryRefused": 3}, False),
        (run_with("Restricted", required=False), run_with("Restricted", required=False), {}, True),
        (run_with("Open"), run_with("Open"), {}, True),
        (run_with("Open"), run_with("Restricted"), PROVEN, True),
    ],
)
def test_an_adapter_is_taken_over_only_from_a_run_that_was_shut_in_as_well(
    run: Run, other: Run, proof: dict[str, Any], taken: bool
) -> None:
    assert shut_in(run, other, Checks.model_construct(egress=proof)) is taken
