"""What a person does on a private cluster: install the chart, put a model and data in, apply a job, take the result."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.control_plane.access import Cluster, wait_until
from cluster.control_plane.binaries import program
from e2e.cluster.node import Node
from e2e.installation import EXAMPLE, Installation
from e2e.jobs import FineTune, quickstart_job
from support.smollm2 import cached_folder

pytestmark = pytest.mark.timeout(1800)
NAME = "orders"
ROWS_TO_ANSWER = 50
CANARY_PORT = 8445


@dataclass(frozen=True)
class Run:
    """The quickstart's job on the cluster, after its end."""

    installation: Installation
    job: FineTune
    columns: list[list[str]]
    """What `kubectl get ftj -w` printed: phase, reason, progress, … of each line."""


@contextmanager
def kubectl_watches(cluster: Cluster, namespace: str, output: Path) -> Iterator[None]:
    """`kubectl get ftj -w` writes to that file, again where the API server ends a watch, as it may at any time."""
    command = [program("kubectl"), "--kubeconfig", cluster.kubeconfig, "get", "ftj", "--namespace", namespace]
    loop = ["bash", "-c", 'while :; do "$@"; sleep 1; done', "watch", *map(str, command), "--watch", "--no-headers"]
    with (
        output.open("w") as file,
        subprocess.Popen(loop, stdout=file, env=cluster.environment(), start_new_session=True) as watch,
    ):
        try:
            yield
        finally:
            os.killpg(watch.pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def run(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The quickstart's job, applied by kubectl and followed by kubectl until it is Complete."""
    installation.upload_quickstart()
    cluster, tenant = installation.cluster, installation.tenants[0]
    watched = tmp_path_factory.mktemp("job") / "watched.txt"
    with kubectl_watches(cluster, tenant, watched):
        job = FineTune.apply(cluster, quickstart_job(tenant, f"s3://adapters/{tenant}/{NAME}"))
        job.wait_for("Complete")
        wait_until(lambda: "Complete" in watched.read_text(), "kubectl to show it", 60)
    lines = [line.split() for line in watched.read_text().splitlines()]
    return Run(installation, job, [line for line in lines if line[0] == NAME])


def test_it_goes_through_all_phases_and_kubectl_shows_how_far_it_is(run: Run) -> None:
    phases = list(dict.fromkeys(line[1] for line in run.columns if len(line) > 2))
    assert [each for each in phases if each in ("Preparing", "Queued", "Training", "Publishing", "Complete")] == [
        "Preparing",
        "Queued",
        "Training",
        "Publishing",
        "Complete",
    ]
    training = [line[2:5] for line in run.columns if line[1:2] == ["Training"] and len(line) == 6]
    progress = [int(line[0].rstrip("%")) for line in training]
    losses = [float(line[1]) for line in training]
    assert len(set(progress)) >= 3 and progress == sorted(progress)
    assert losses[-1] < losses[0] / 2
    assert len({line[2] for line in training}) >= 3, "the ETA moves"


def test_restricted_egress_is_proven(run: Run) -> None:
    assert run.job.condition("EgressRestricted") == ("True", "Enforced")


def test_nothing_else_was_tried_and_nothing_left_the_machine(run: Run, node: Node) -> None:
    mine = [each for each in node.policies.refusals() if each.source.startswith(f"{run.job.namespace}/{NAME}-")]
    assert mine, "every process tries the canary"
    assert {(each.target, each.port) for each in mine if each.port != CANARY_PORT} == set()
    assert not any(each.would_leave for each in mine)


def test_pods_are_restricted_and_have_no_token(run: Run) -> None:
    pods = [pod for role in ("prepare", "publish") for pod in run.job.pods(role)]
    assert len(pods) >= 2
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert not any("serviceaccount" in mount["mountPath"] for mount in container["volumeMounts"])


def test_the_adapter_answers_held_out_orders_in_stock_peft(run: Run, adapter: Path) -> None:
    exact = run.job.status["evaluation"]["exactMatch"]
    assert exact["after"] >= 0.9 * exact["rows"], exact
    rows = [json.loads(line) for line in (EXAMPLE / "holdout.jsonl").read_text().splitlines()][:ROWS_TO_ANSWER]
    wanted = [row["messages"][-1]["content"] for row in rows]
    given = answers([row["messages"][:-1] for row in rows], adapter)
    assert sum(one == other for one, other in zip(given, wanted, strict=True)) >= 0.9 * len(rows)


def test_digests_are_those_of_the_manifest_and_of_status(run: Run, adapter: Path) -> None:
    output = run.job.status["output"]
    manifest = (adapter / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == output["manifestDigest"]
    assert digest(adapter / "adapter_model.safetensors") == output["adapterDigest"]
    for file in json.loads(manifest)["files"]:
        assert digest(adapter / file["name"]) == file["sha256"], file["name"]


def test_tokens_and_checkpoints_are_gone(run: Run) -> None:
    uid = run.job.read()["metadata"]["uid"]
    left = run.installation.keys("cloister-runs", f"{run.job.namespace}/{uid}/")
    assert left and not [key for key in left if "/tokens/" in key or "/checkpoints/" in key], left


def test_the_published_folder_is_verified_with_its_proof_of_egress(run: Run, adapter: Path) -> None:
    verified = verify(adapter)
    assert verified.returncode == 0, verified.stderr
    assert "control answered, canary refused" in verified.stdout
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert verify(adapter).returncode == 1


@pytest.fixture
def adapter(run: Run, tmp_path: Path) -> Path:
    """The published folder, downloaded from the object store."""
    return run.installation.download(run.job.status["output"]["uri"], tmp_path)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    """`cloister verify` of a downloaded output prefix."""
    command = [sys.executable, "-m", "cloister_trainer.cli.main", "verify", f"file://{folder.parent}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answers(conversations: list[list[dict[str, str]]], adapter: Path) -> list[str]:
    """The greedy answers of stock PEFT, all at once."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cached_folder(), padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(cached_folder(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    inputs = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
    )
    output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    return list(tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
