"""Pure parts of publish: the gate's arithmetic, metrics of resumed runs, the egress sentence, names and curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister_api.run import Run
from cloister_api.spec_cluster import Egress
from cloister_api.spec_data import Dataset
from cloister_trainer.publish.adapter_checks import model_name, published_config
from cloister_trainer.publish.manifest import collect_egress, dataset_uris
from cloister_trainer.publish.metrics import encode_metrics, first_and_last_time, read_metrics
from cloister_trainer.publish.plots import smooth
from cloister_trainer.publish.report import format_bytes, format_duration, words
from cloister_trainer.storage import open_storage


def line(step: int, time: str) -> str:
    return json.dumps({"step": step, "loss": 1.0, "time": time}) + "\n"


def test_of_steps_made_twice_the_later_counts(tmp_path: Path) -> None:
    """An attempt stored steps 3 to 6, its successor went on from the checkpoint at step 2 and ended at step 5."""
    spec = {"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}, "output": {"uri": tmp_path.as_uri()}}
    uid = "11111111-2222-3333-4444-555555555555"
    run = Run.model_validate({"uid": uid, "namespace": "local", "name": "a", "spec": spec})
    storage = open_storage(environ={})
    parts = {
        1: line(1, "10:01") + line(2, "10:02"),
        3: line(3, "11:03") + line(4, "11:04"),
        5: line(5, "10:05") + line(6, "10:06"),
        4: line(5, "11:05"),
    }
    for first, text in parts.items():
        storage.write(run.layout.metrics_part(first), text.encode())

    metrics = read_metrics(run, storage, last_step=5)

    assert [(record["step"], record["time"]) for record in metrics] == [
        (1, "10:01"),
        (2, "10:02"),
        (3, "11:03"),
        (4, "11:04"),
        (5, "11:05"),
    ]
    assert first_and_last_time(metrics) == ("10:01", "11:05")
    assert encode_metrics(metrics).count(b"\n") == 5


def proof(processes: int, control: int, canary: int) -> dict[str, int]:
    return {"processes": processes, "controlAnswered": control, "canaryRefused": canary}


@pytest.mark.parametrize(
    ("prepare", "train", "publish", "said"),
    [
        (proof(1, 1, 1), proof(8, 8, 8), proof(1, 1, 1), "10 of 10 processes: control answered, canary refused."),
        (
            proof(1, 1, 1),
            {},
            proof(1, 1, 1),
            "2 of 2 processes: control answered, canary refused; nothing",
        ),
        (proof(1, 1, 1), proof(2, 1, 1), proof(1, 1, 1), "2 of 4 processes"),
        ({}, {}, {}, "Not proven"),
    ],
)
def test_the_egress_sentence_never_claims_more_than_was_proven(
    prepare: dict[str, int], train: dict[str, int], publish: dict[str, int], said: str
) -> None:
    assert said in collect_egress(Egress.RESTRICTED, prepare, train, publish).summary


def test_open_egress_says_open() -> None:
    assert collect_egress(Egress.OPEN, {}, {}, {}).summary.startswith("Open")


@pytest.mark.parametrize(
    ("uri", "name"),
    [("s3://models/llama-3.1-8b", "llama-3.1-8b"), ("pvc://models/a/b/", "b"), ("file:///home/ada/m", "m")],
)
def test_the_base_model_is_named_without_its_place(uri: str, name: str) -> None:
    config = json.loads(published_config(b'{"base_model_name_or_path": "/tmp/fetch/1", "r": 4}', uri))
    assert config["base_model_name_or_path"] == model_name(uri) == name
    assert config["r"] == 4


def test_smoothing_keeps_a_constant_and_damps_a_spike() -> None:
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    assert max(smooth([1.0] * 50 + [9.0] + [1.0] * 50)) < 4.0
    assert smooth([float(value) for value in range(100)]) == pytest.approx(range(100)), "no lag"


def test_numbers_are_readable() -> None:
    assert [format_bytes(count) for count in (512, 1536, 3 << 30)] == ["512 B", "1.5 KiB", "3.0 GiB"]
    assert [words(name) for name in ("frozenWeights", "isolation")] == ["frozen weights", "isolation"]
    assert [format_duration(seconds) for seconds in (5.04, 83.4, 7500)] == ["5.0 s", "1 min 23 s", "2 h 05 min"]


def test_the_dataset_is_what_was_read() -> None:
    sources = [{"uri": "s3://d/a"}, {"uri": "s3://d/off", "weight": 0}, {"uri": "s3://d/b", "weight": 0.5}]
    assert dataset_uris(Dataset.model_validate({"sources": sources})) == ["s3://d/a", "s3://d/b"]
    separate = {"uri": "s3://d/a", "validation": {"uri": "s3://d/held-out"}}
    assert dataset_uris(Dataset.model_validate(separate)) == ["s3://d/a", "s3://d/held-out"]
