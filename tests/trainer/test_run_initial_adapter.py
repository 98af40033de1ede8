"""A run that goes on from another run's adapter begins where that one ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister_trainer.prepare.initial_adapter import check_initial_adapter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.targets import targets_in
from support.tiny_ranks import run_ranks
from support.tiny_run import make_run


def test_it_begins_with_the_loss_that_the_other_ended_with(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", steps=3, validation=8, inputs=tmp_path / "inputs")
    run_ranks(first).end()
    lora = {"rank": 4, "alpha": 8, "initFrom": {"uri": first.stored("adapter").as_uri()}}
    second = make_run(
        tmp_path / "second", steps=2, validation=8, inputs=tmp_path / "inputs", stage=3, workers=2, lora=lora
    )
    settings = second.run.spec.lora
    targets = targets_in(tmp_path / "inputs" / "model", ["model.safetensors"], settings)
    check_initial_adapter(open_storage(), settings, targets)
    run_ranks(second, 2).end()

    ended, began = first.checks()["evaluations"], second.checks()["evaluations"]
    assert ended[0]["loss"] - ended[-1]["loss"] > 0.01
    assert began[0]["loss"] == pytest.approx(ended[-1]["loss"], abs=1e-5)
    assert began[-1]["loss"] < began[0]["loss"]
