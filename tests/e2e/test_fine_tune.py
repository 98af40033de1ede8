"""What a person does on a private cluster: install the chart, put a model and data in, apply a job, take the result."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloister_api.yaml_tree import read_documents
from cluster.control_plane.access import wait_until
from cluster.control_plane.binaries import program
from cluster.jobs import jobs_path
from e2e.cluster.node import Node
from e2e.installation import EXAMPLE, IMAGES, NAMESPACE, Installation

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.timeout(1800)
TENANT = "legal"
NAME = "orders"
OUTPUT = f"s3://adapters/{TENANT}/{NAME}"
LIMIT_S = 900.0
ROWS_TO_ANSWER = 5
CANARY_PORT = 8445

Object = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The quickstart's job on the cluster, after its end."""

    node: Node
    installation: Installation
    job: Object
    columns: list[list[str]]
    """What `kubectl get ftj -w` printed: phase, reason, progress, … of each line."""

    @property
    def status(self) -> Object:
        """The job's status."""
        found: Object = self.job["status"]
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        return next((each["status"], each["reason"]) for each in self.status["conditions"] if each["type"] == kind)


@pytest.fixture(scope="module")
def installation(node: Node) -> Iterator[Installation]:
    """The chart, installed on the node with the images that `make images` built, and the quickstart's inputs."""
    for name in ("operator", "store", "trainer"):
        archive = IMAGES / f"{name}.tar"
        assert archive.is_file(), f"{archive} is missing: run `make images`"
        node.import_image(archive)
    installed = Installation(node, (TENANT,))
    installed.install()
    installed.upload_quickstart()
    yield installed
    installed.uninstall()


@pytest.fixture(scope="module")
def run(node: Node, installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The quickstart's job, applied by kubectl and followed by kubectl until it is Complete."""
    manifest = tmp_path_factory.mktemp("job") / "job.yaml"
    manifest.write_text(json.dumps(quickstart_job()))
    watched = manifest.with_name("watched.txt")
    command = [program("kubectl"), "--kubeconfig", node.kubeconfig, "get", "ftj", "--namespace", TENANT, "--watch"]
    with (
        watched.open("w") as output,
        subprocess.Popen([*map(str, command), "--no-headers"], stdout=output, env=node.environment()) as watch,
    ):
        node.kubectl("apply", "-f", str(manifest))
        try:
            wait_until(lambda: phase_of(node) in ("Complete", "Failed"), "the end of the job", LIMIT_S)
        finally:
            watch.terminate()
    job = node.api.get(jobs_path(TENANT, NAME))
    assert job["status"]["phase"] == "Complete", told(node, job)
    columns = [line.split() for line in watched.read_text().splitlines()]
    return Run(node, installation, job, columns)


def quickstart_job() -> Object:
    """examples/01-quickstart/job.yaml, in the tenant's namespace and below its prefix."""
    (document,) = read_documents((EXAMPLE / "job.yaml").read_text())
    job: Object = document.value
    job["metadata"] |= {"namespace": TENANT}
    job["spec"]["output"]["uri"] = OUTPUT
    return job


def phase_of(node: Node) -> str:
    found: str = node.api.get(jobs_path(TENANT, NAME)).get("status", {}).get("phase", "")
    return found


def told(node: Node, job: Object) -> str:
    """Everything that may explain why a job did not come through."""
    events = node.kubectl("get", "events", "--sort-by=.lastTimestamp", namespace=TENANT)
    logs = node.kubectl("logs", "deployment/cloister-operator", "--tail=60", namespace=NAMESPACE)
    return "\n".join((json.dumps(job["status"], indent=1), events, logs))


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


def test_restricted_egress_is_proven_and_nothing_else_flowed(run: Run) -> None:
    assert run.condition("EgressRestricted") == ("True", "Enforced")
    mine = [each for each in run.node.policies.refusals() if each.source.startswith(f"{TENANT}/")]
    assert mine, "every process tries the canary"
    assert {each.port for each in mine} == {CANARY_PORT}
    assert not any(each.would_leave for each in mine)
    assert run.node.guarded_packets() == 0


def test_pods_are_restricted_and_have_no_token(run: Run) -> None:
    pods = run.node.api.get(f"/api/v1/namespaces/{TENANT}/pods")["items"]
    assert {"prepare", "publish"} <= {pod["metadata"]["labels"].get("cloister.dev/role") for pod in pods}
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert not any("serviceaccount" in mount["mountPath"] for mount in container["volumeMounts"])


def test_the_adapter_answers_held_out_orders_in_stock_peft(run: Run, adapter: Path) -> None:
    exact = run.status["evaluation"]["exactMatch"]
    assert exact["after"] >= 0.9 * exact["rows"], exact
    rows = [json.loads(line) for line in (EXAMPLE / "holdout.jsonl").read_text().splitlines()][:ROWS_TO_ANSWER]
    assert sum(answer(row["messages"][:-1], adapter) == row["messages"][-1]["content"] for row in rows) >= len(rows) - 1


def test_digests_are_those_of_the_manifest_and_of_status(run: Run, adapter: Path) -> None:
    output = run.status["output"]
    manifest = (adapter / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == output["manifestDigest"]
    assert digest(adapter / "adapter_model.safetensors") == output["adapterDigest"]
    for file in json.loads(manifest)["files"]:
        assert digest(adapter / file["name"]) == file["sha256"], file["name"]


def test_tokens_and_checkpoints_are_gone(run: Run) -> None:
    with run.installation.store() as client:
        left = keys(client, "cloister-runs", f"{TENANT}/{run.job['metadata']['uid']}/")
    assert left and not [key for key in left if "/tokens/" in key or "/checkpoints/" in key], left


def test_the_published_folder_is_verified_with_its_proof_of_egress(run: Run, adapter: Path) -> None:
    verified = verify(adapter)
    assert verified.returncode == 0, verified.stderr
    assert "control answered, canary refused" in verified.stdout
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert verify(adapter).returncode == 1


@pytest.fixture
def adapter(run: Run, tmp_path: Path) -> Path:
    """The published folder, downloaded from the object store."""
    prefix = run.status["output"]["uri"].removeprefix("s3://adapters/") + "/"
    folder = tmp_path / prefix.rstrip("/").rpartition("/")[2]
    with run.installation.store() as client:
        for key in keys(client, "adapters", prefix):
            target = folder / key.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file("adapters", key, str(target))
        client.download_file("adapters", f"{TENANT}/{NAME}/current.json", str(tmp_path / "current.json"))
    return folder


def keys(client: S3Client, bucket: str, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    """`cloister verify` of a downloaded output prefix."""
    command = [sys.executable, "-m", "cloister_trainer.cli.main", "verify", f"file://{folder.parent}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@cache
def base_model() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from support.smollm2 import cached_folder

    folder = cached_folder()
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def answer(messages: list[dict[str, str]], adapter: Path) -> str:
    """The greedy answer of stock PEFT."""
    from peft import PeftModel

    tokenizer, base = base_model()
    model = PeftModel.from_pretrained(base, adapter)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    model.unload()
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
