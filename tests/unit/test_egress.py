"""The egress proof, against real listeners on loopback."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJobSpec
from cloister_api.reasons import FailureReason
from cloister_api.run import Run, RunSettings, StorageDefaults
from cloister_trainer.egress import merge_proofs, prove_egress
from cloister_trainer.reporter import Reporter
from cloister_trainer.steps import StepContext, check_step, prepare_step, publish_step, train_step
from cloister_trainer.storage import open_storage
from cloister_trainer.workspace import Workspace
from support.seaweedfs import free_ports


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


class _Mute(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()


@contextmanager
def listening(handler: type[socketserver.StreamRequestHandler]) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def closed() -> str:
    """An address on which nothing listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


def run_with(control: str | None, canary: str | None, *, egress: str = "Restricted", require: bool = True) -> Run:
    spec = {
        "model": {"uri": "s3://models/m"},
        "dataset": {"uri": "s3://data/d.jsonl"},
        "output": {"uri": "s3://out/a"},
        "network": {"egress": egress},
    }
    return Run(
        uid="0b5b3c52-5d0c-5c7e-9f50-3f4c64a3f6a1",
        namespace="legal",
        name="contracts",
        spec=FineTuneJobSpec.model_validate(spec),
        settings=RunSettings(control_address=control, canary_address=canary, require_enforced_egress=require),
    )


def test_control_answering_and_canary_silent_is_the_proof(closed: str) -> None:
    with listening(_Echo) as control:
        proof = prove_egress(run_with(control, closed))
    assert (proof["processes"], proof["controlAnswered"], proof["canaryRefused"]) == (1, 1, 1)


def test_a_canary_that_answers_ends_the_run() -> None:
    with listening(_Echo) as control, listening(_Echo) as canary, pytest.raises(CloisterError) as failure:
        prove_egress(run_with(control, canary))
    assert failure.value.reason is FailureReason.EGRESS_NOT_ENFORCED
    assert canary in failure.value.message


def test_a_middlebox_that_accepts_without_echoing_is_no_answer(closed: str) -> None:
    with listening(_Mute) as control, pytest.raises(CloisterError) as failure:
        prove_egress(run_with(control, closed), patience_s=0)
    assert failure.value.reason is FailureReason.EGRESS_UNPROVEN


def test_a_silent_control_is_dialled_again_until_patience_ends(closed: str) -> None:
    waits: list[float] = []
    with pytest.raises(CloisterError) as failure:
        prove_egress(run_with(closed, closed), patience_s=0.05, interval_s=0.01, sleep=waits.append)
    assert failure.value.reason is FailureReason.EGRESS_UNPROVEN
    assert waits and set(waits) == {0.01}


def test_the_administrator_may_only_record() -> None:
    with listening(_Echo) as control, listening(_Echo) as canary:
        proof = prove_egress(run_with(control, canary, require=False))
    assert (proof["controlAnswered"], proof["canaryRefused"]) == (1, 0)


def test_a_run_without_addresses_is_unproven(closed: str) -> None:
    for control, canary in ((None, closed), (closed, None), (None, None)):
        with pytest.raises(CloisterError) as failure:
            prove_egress(run_with(control, canary))
        assert failure.value.reason is FailureReason.EGRESS_UNPROVEN


def test_nothing_is_claimed_where_nothing_was_dialled(closed: str) -> None:
    assert prove_egress(run_with(None, None, require=False)) == {}
    assert prove_egress(run_with(closed, closed, egress="Open")) == {}


@pytest.mark.parametrize("step", [prepare_step, train_step, publish_step, check_step])
def test_no_step_touches_the_store_before_the_proof(
    step: Callable[[StepContext], object], closed: str, tmp_path: Path
) -> None:
    """The run's URIs name a store that nothing answers for: a step that read first would say so instead."""
    with listening(_Echo) as control, listening(_Echo) as canary:
        storage = open_storage(StorageDefaults(endpoint=f"http://{closed}", region="here"), {})
        context = StepContext(run_with(control, canary), storage, Reporter.silent(), Workspace(tmp_path), lines=False)
        with pytest.raises(CloisterError) as failure:
            step(context)
    assert failure.value.reason is FailureReason.EGRESS_NOT_ENFORCED


def test_proofs_of_several_processes_add_up() -> None:
    one = {"processes": 1, "controlAnswered": 1, "canaryRefused": 1, "time": "2026-01-01T00:00:00+00:00"}
    other = {**one, "canaryRefused": 0, "time": "2026-01-02T00:00:00+00:00"}
    assert merge_proofs([one, other, {}]) == {
        "processes": 2,
        "controlAnswered": 2,
        "canaryRefused": 1,
        "time": "2026-01-02T00:00:00+00:00",
    }
    assert merge_proofs([]) == {}
