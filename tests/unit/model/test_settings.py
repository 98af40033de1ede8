"""Mistakes that config.json and headers show are found before the data is read; lengths have one rule."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Training
from cloister_trainer.model.settings import check_before_data, max_length
from cloister_trainer.prepare.main import make_plan
from cloister_trainer.reporter import PlainConsole, Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.workspace import Workspace
from support.model_folders import config, llama_tensors, mixtral_tensors, write_llama
from support.plans import a_run, an_inspected_model

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "longer than the model": ({"training": {"maxLength": 1000}}, "allows 512 tokens"),
    "memory that is no quantity": ({"distribution": {"gpuMemory": "0Gi"}}, "gpuMemory is '0Gi'"),
    "an adapter that is not there": (
        {"lora": {"initFrom": {"uri": "file:///nowhere/adapter"}}},
        "lora.initFrom.uri: There is no file file:///nowhere/adapter/adapter_config.json",
    ),
    "a target that is not there": ({"lora": {"targets": {"modules": ["w1"]}}}, "lora.targets.modules names w1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_spec_is_found_before_the_data_is_read(case: str, tmp_path: Path) -> None:
    """The data is not there: whoever read it first would say so."""
    spec, words = MISTAKES[case]
    model = write_llama(tmp_path / "model")
    missing = {"uri": (tmp_path / "missing.jsonl").as_uri()}
    run = a_run(**{"model": {"uri": model.as_uri()}, "dataset": missing} | spec)
    reporter = Reporter(PlainConsole(io.StringIO()))
    with pytest.raises(CloisterError) as caught:
        make_plan(run, open_storage(), reporter, Workspace(tmp_path / "scratch"))
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert words in caught.value.message


def test_dropout_on_experts_and_servers_that_cannot_load_are_found_without_data() -> None:
    mixtral = an_inspected_model(config("mixtral", "MixtralForCausalLM", num_experts_per_tok=2), mixtral_tensors())
    experts = {"targets": {"preset": "AllWithExperts"}}
    with pytest.raises(CloisterError, match="dropout cannot be applied to routed experts"):
        check_before_data(a_run(lora={**experts, "dropout": 0.1}), mixtral)
    with pytest.raises(CloisterError, match="vLLM does not load adapters of routed experts"):
        check_before_data(a_run(lora=experts, output={"uri": "s3://a/x", "servableBy": ["VLLM"]}), mixtral)


def test_a_base_in_four_bits_has_no_routed_experts_and_widths_that_bitsandbytes_takes() -> None:
    run = a_run(lora={"quantization": "NF4"})
    llama = an_inspected_model(config(), llama_tensors())
    check_before_data(run, llama)
    mixtral = an_inspected_model(config("mixtral", "MixtralForCausalLM", num_experts_per_tok=2), mixtral_tensors())
    with pytest.raises(CloisterError, match=r"Mixtral.* routed experts, which are none\. Leave lora\.quantization out"):
        check_before_data(run, mixtral)
    with pytest.raises(CloisterError, match=r"64 does not divide .*: model\.layers\.0\.\S+ has \d+\. Train on GPUs"):
        check_before_data(a_run(lora={"quantization": "NF4"}, distribution={"gpusPerWorker": 0}), llama)


def test_llama_cpp_scales_by_the_rank_and_knows_no_other_scale() -> None:
    llama = an_inspected_model(config(), llama_tensors())
    served = {"uri": "s3://a/x", "servableBy": ["LlamaCpp"]}
    check_before_data(a_run(output=served), llama)
    with pytest.raises(CloisterError, match=r"leave lora\.rankStabilized out"):
        check_before_data(a_run(lora={"rankStabilized": True}, output=served), llama)


def test_examples_are_as_long_as_asked_or_4096_tokens_or_what_the_model_takes() -> None:
    assert max_length(Training(), 131_072) == 4096
    assert max_length(Training(), 2048) == 2048
    assert max_length(Training(max_length=8192), 131_072) == 8192
    with pytest.raises(CloisterError, match="Set it to 2048 or less"):
        max_length(Training(max_length=2049), 2048)
