"""What `helm test` and the chart's hooks do with the object store, on a real one; and that its tiny job trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister_api.run import StorageDefaults
from cloister_api.termination import Outcome, TerminationMessage, parse_termination
from cloister_api.yaml_tree import read_documents
from cloister_trainer.__main__ import TERMINATION_LOG_ENVIRONMENT
from cloister_trainer.readiness.__main__ import main
from cloister_trainer.readiness.buckets import ensure_buckets
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage.s3_client import make_client
from support.seaweedfs import SeaweedFS, free_ports

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "chart" / "store" / "rendered.yaml"
URI = "s3://cloister-runs/readiness"


@pytest.fixture(scope="module")
def store() -> Iterator[SeaweedFS]:
    with SeaweedFS() as server:
        yield server


def inputs(store: SeaweedFS, folder: Path, *arguments: str, **environment: str) -> tuple[int, TerminationMessage]:
    """Run the step as the pod does: the endpoint by the administrator's settings, the keys by the Secret."""
    log = folder / "termination-log"
    keys = {name: value for name, value in store.environment().items() if name != "AWS_ENDPOINT_URL_S3"}
    defaults = json.dumps({"endpoint": store.endpoint})
    code = main(
        ["inputs", URI, "--storage", defaults, *arguments], keys | {TERMINATION_LOG_ENVIRONMENT: str(log)} | environment
    )
    message = parse_termination(log.read_text())
    assert message is not None
    return code, message


def test_buckets_are_made_once(store: SeaweedFS, capsys: pytest.CaptureFixture[str]) -> None:
    for said in ("was made", "is there"):
        assert main(["buckets", "cloister-runs", "models"], store.environment()) == 0
        assert capsys.readouterr().err.count(said) == 2


def test_a_store_that_does_not_answer_is_waited_for_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    environment = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"}
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "very-secret"}
    client = make_client(StorageDefaults(), environment | keys)
    waits: list[float] = []
    assert not ensure_buckets(client, ["models"], Reporter(), patience_s=0.2, sleep=waits.append)
    assert waits
    said = capsys.readouterr().err
    assert f"The object store at http://127.0.0.1:{port} did not make the buckets: EndpointConnectionError" in said
    assert "very-secret" not in said


def test_keys_that_are_refused_are_a_reason(store: SeaweedFS, tmp_path: Path) -> None:
    code, message = inputs(store, tmp_path, AWS_ACCESS_KEY_ID="nobody")
    assert code != 0
    assert (message.outcome, str(message.reason)) == (Outcome.REFUSED, "StorageAccessDenied")


@pytest.mark.timeout(600)
def test_the_job_of_helm_test_trains_20_steps_on_its_own_inputs(store: SeaweedFS, tmp_path: Path) -> None:
    store_has_buckets = main(["buckets", "cloister-runs"], store.environment())
    code, message = inputs(store, tmp_path)
    assert (store_has_buckets, code, message.outcome) == (0, 0, Outcome.SUCCEEDED)
    job = tmp_path / "job.json"
    job.write_text(json.dumps(readiness_job()))
    environment = os.environ | store.environment() | {"CLOISTER_SCRATCH": str(tmp_path / "scratch")}
    command = [sys.executable, "-m", "cloister_trainer.cli.main", "run", str(job)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    body = store.client().get_object(Bucket="cloister-runs", Key="readiness/adapter/current.json")["Body"]
    published = json.loads(body.read())
    manifest = store.client().get_object(
        Bucket="cloister-runs", Key=f"readiness/adapter/{published['folder']}/manifest.json"
    )
    assert json.loads(manifest["Body"].read())["spec"]["training"]["maxSteps"] == 20


def readiness_job() -> dict[str, Any]:
    """The FineTuneJob as the chart renders it."""
    for document in read_documents(GOLDEN.read_text()):
        if "plan.json" in document.value.get("data", {}):
            job: dict[str, Any] = json.loads(document.value["data"]["plan.json"])["job"]
            return job
    raise LookupError("the chart renders no readiness plan")
