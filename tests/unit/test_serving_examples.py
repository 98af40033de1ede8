"""examples/11-serving serves what examples/03-multi-node-gpu publishes, and tells servers only what they know."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister_trainer.model.servers import VLLM_DEFAULT_RANK, VLLM_RANKS
from support.examples import Object, of_kind
from support.pages import Block, blocks, commands

ADAPTER_FIELDS = {"name", "uri"}
"""KServe's schema leaves the inside of an adapter open, so that no API server finds a wrong word there."""


@pytest.fixture(scope="module")
def job() -> Object:
    """The job whose adapter is served."""
    (shown,) = of_kind("FineTuneJob", "03-multi-node-gpu")
    return shown.object


@pytest.fixture(scope="module")
def pod() -> Object:
    (shown,) = of_kind("Deployment", "11-serving")
    spec: Object = shown.object["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def kserve() -> Object:
    (shown,) = of_kind("LLMInferenceService", "11-serving")
    return shown.object


def vllm_serve() -> argparse.ArgumentParser:
    """Those arguments of `vllm serve` that the pages use, as vllm 0.33.0 declares them."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("model_tag")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--chat-template")
    parser.add_argument("--enable-lora", action=argparse.BooleanOptionalAction)
    parser.add_argument("--max-lora-rank", type=int, choices=VLLM_RANKS, default=VLLM_DEFAULT_RANK)
    parser.add_argument("--lora-modules", nargs="+", type=lambda text: dict([text.split("=")]))
    return parser


def convert_lora_to_gguf() -> argparse.ArgumentParser:
    """The same of llama.cpp's converter, as its commit 0c1e570 declares them."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("lora_path")
    parser.add_argument("--base")
    parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "auto"])
    parser.add_argument("--outfile")
    return parser


def lines_of(program: str) -> list[tuple[Block, list[str]]]:
    shown = [(block, words) for block in blocks("sh") for words in commands(block)]
    return [(block, words) for block, words in shown if program in words[:2]]


def container(pod: Object, kind: str, name: str) -> Object:
    (found,) = [each for each in pod[kind] if each["name"] == name]
    return dict(found)


def test_vllm_gets_the_job_s_base_adapter_length_and_rank(job: Object, pod: Object) -> None:
    server = container(pod, "containers", "vllm")
    assert server["command"][:2] == ["vllm", "serve"]
    told = vllm_serve().parse_args([*server["command"][2:], *server["args"]])
    base = job["spec"]["model"]["uri"].rsplit("/", 1)[1]
    assert told.model_tag == f"/models/{base}"
    assert told.served_model_name == [base]
    assert told.max_model_len == job["spec"]["training"]["maxLength"]
    assert told.enable_lora
    assert told.max_lora_rank == next(rank for rank in VLLM_RANKS if rank >= job["spec"]["lora"].get("rank", 16))
    assert told.lora_modules == [{job["metadata"]["name"]: "/serve/adapter"}]


def test_the_adapter_is_fetched_from_a_folder_of_the_job_s_output(job: Object, pod: Object, kserve: Object) -> None:
    fetch = container(pod, "initContainers", "fetch")
    (folder,) = [each["value"] for each in fetch["env"] if each["name"] == "FOLDER"]
    assert folder.rpartition("/")[0] == job["spec"]["output"]["uri"]
    assert fetch["args"][-2:] == ["$(FOLDER)/", "/serve/adapter/"]
    (adapter,) = kserve["spec"]["model"]["lora"]["adapters"]
    assert adapter == {"name": job["metadata"]["name"], "uri": folder}


def test_kserve_gets_the_job_s_base_and_only_fields_that_it_knows(job: Object, kserve: Object) -> None:
    model = kserve["spec"]["model"]
    assert model["uri"] == job["spec"]["model"]["uri"]
    assert model["name"] == model["uri"].rsplit("/", 1)[1]
    for adapter in model["lora"]["adapters"]:
        assert set(adapter) == ADAPTER_FIELDS
        assert adapter["name"] != model["name"]  # KServe's webhook refuses it
    needs_rank = job["spec"]["lora"].get("rank", 16) > VLLM_DEFAULT_RANK
    assert ("maxRank" in model["lora"]) == needs_rank


def test_kserve_finds_the_keys_at_its_service_account(kserve: Object) -> None:
    (account,) = of_kind("ServiceAccount", "11-serving")
    assert kserve["spec"]["template"]["serviceAccountName"] == account.object["metadata"]["name"]
    made = [
        words[4] for block in blocks("sh") for words in commands(block) if words[1:4] == ["create", "secret", "generic"]
    ]
    assert account.object["secrets"][0]["name"] in made


@pytest.mark.parametrize(("block", "words"), lines_of("vllm"), ids=str)
def test_vllm_s_arguments_on_a_page_are_its_own(block: Block, words: list[str]) -> None:
    assert words[:2] == ["vllm", "serve"], f"{block}: {words}"
    assert vllm_serve().parse_args(words[2:]).enable_lora


@pytest.mark.parametrize(("block", "words"), lines_of("llama.cpp/convert_lora_to_gguf.py"), ids=str)
def test_the_converter_s_arguments_on_a_page_are_its_own(block: Block, words: list[str]) -> None:
    told = convert_lora_to_gguf().parse_args(words[2:])
    assert told.base and told.outfile, f"{block}: without --base it asks a hub outside"


class Published:
    """A folder as publish leaves it, with a file that `fetch` leaves out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "adapter_config.json").write_text("{}")
        files = [{"name": path.name, "sha256": sha256(path), "size": 1} for path in sorted(folder.iterdir())]
        files.append({"name": "merged/model.safetensors", "sha256": "0" * 64, "size": 1})
        (folder / "manifest.json").write_text(json.dumps({"files": files}))
        self.digest = sha256(folder / "manifest.json")

    def verified_by(self, pod: Object) -> subprocess.CompletedProcess[str]:
        """What the pod's container `verify` says of it."""
        verify = container(pod, "initContainers", "verify")
        environment = os.environ | {"ADAPTER": str(self.folder), "MANIFEST_SHA256": self.digest}
        command: list[Any] = [sys.executable, *verify["command"][1:], *verify["args"]]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_was_published_is_served(pod: Object, tmp_path: Path) -> None:
    ended = Published(tmp_path).verified_by(pod)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["manifest.json", "adapter_model.safetensors"])
def test_a_file_that_is_not_what_was_published_is_not_served(pod: Object, tmp_path: Path, name: str) -> None:
    published = Published(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" ")
    ended = published.verified_by(pod)
    assert ended.returncode == 1
    assert f"{name} has sha256 {sha256(tmp_path / name)}, not " in ended.stderr


def test_a_file_that_was_not_fetched_is_missed(pod: Object, tmp_path: Path) -> None:
    published = Published(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    assert published.verified_by(pod).returncode == 1
