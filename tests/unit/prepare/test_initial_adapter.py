"""lora.initFrom: other weights are another adapter, and one that would mean something else in the job is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import AdapterSource, Lora
from cloister_trainer.model.targets import resolve_targets
from cloister_trainer.prepare.initial_adapter import adapter_fingerprint, check_initial_adapter
from cloister_trainer.storage import open_storage
from support.model_folders import config, llama_tensors
from support.plans import an_inspected_model

LLAMA = an_inspected_model(config(), llama_tensors())


def of(folder: Path) -> str | None:
    return adapter_fingerprint(open_storage(environ={}), AdapterSource(uri=folder.as_uri()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_the_same_files_have_the_same_fingerprint(folder: Path) -> None:
    before = of(folder)
    (folder / "manifest.json").write_text("{}")
    os.utime(folder / "adapter_config.json", (1, 1))
    assert of(folder) == before


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_other_contents_of_the_same_size_have_another(folder: Path, name: str) -> None:
    before = of(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[::-1])
    assert of(folder) != before


def test_a_new_adapter_has_none() -> None:
    assert adapter_fingerprint(open_storage(environ={}), None) is None


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_without_one_of_its_files_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CloisterError, match=rf"lora.initFrom.uri: .*{name}") as caught:
        of(folder)
    assert caught.value.reason is FailureReason.SPEC_INVALID


def check(folder: Path, source: str, **lora: Any) -> None:
    """Continue the adapter whose adapter_config.json is `source` in a job with these settings, on a tiny Llama."""
    (folder / "adapter_config.json").write_text(source)
    settings = Lora.model_validate({"initFrom": {"uri": folder.as_uri()}, **lora})
    targets = resolve_targets(LLAMA.config, LLAMA.tensors, settings)
    check_initial_adapter(open_storage(environ={}), settings, targets)


def peft(**fields: Any) -> str:
    """adapter_config.json of an adapter of rank 8 that scales its update by 2."""
    return json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none"} | fields)


SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "as it was trained": (peft(), {"rank": 8, "alpha": 16}),
    "the same scale in other words": (peft(use_rslora=True, r=4, lora_alpha=4), {"rank": 4, "alpha": 8}),
    "rank-stabilised": (peft(use_rslora=True), {"rank": 8, "alpha": 16, "rankStabilized": True}),
    "ranks of single modules": (
        peft(rank_pattern={r"model\.layers\.0\.mlp\.down_proj": 2, r"model\.layers\.1\.mlp\.down_proj\.weight": 2}),
        {"rank": 8, "alpha": 16, "rankOverrides": {"down_proj": 2}},
    ),
    "an alpha that says what is usual": (peft(alpha_pattern={"down_proj": 16}), {"rank": 8, "alpha": 16}),
}


@pytest.mark.parametrize("case", SAME)
def test_an_adapter_that_means_the_same_is_continued(case: str, folder: Path) -> None:
    source, lora = SAME[case]
    check(folder, source, **lora)


REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "another alpha": (
        peft(),
        {"rank": 8},
        ["by 2, this job by 4", "another function", "lora.rank 8, lora.alpha 16, lora.rankStabilized false."],
    ),
    "rank-stabilised only there": (peft(use_rslora=True), {"rank": 8, "alpha": 16}, ["lora.rankStabilized true."]),
    "rank-stabilised only here": (peft(), {"rank": 8, "alpha": 16, "rankStabilized": True}, ["rankStabilized false."]),
    "another rank": (peft(), {"alpha": 16}, ["down_proj rank 8, this job gives it rank 16", "lora.rank 8"]),
    "another rank of a module": (
        peft(rank_pattern={"down_proj": 4}),
        {"rank": 8, "alpha": 16},
        ["down_proj rank 4, this job gives it rank 8", "and lora.rankOverrides as its rank_pattern says."],
    ),
    "another alpha of a module": (
        peft(alpha_pattern={"down_proj": 32}),
        {"rank": 8, "alpha": 16},
        ["down_proj by 4, this job by 2", "Its alpha_pattern"],
    ),
    "DoRA": (peft(use_dora=True), {"rank": 8, "alpha": 16}, ["describes DoRA", "plain LoRA adapter"]),
    "PiSSA": (peft(init_lora_weights="pissa"), {"rank": 8, "alpha": 16}, ["a changed base (init_lora_weights pissa)"]),
    "biases and embeddings": (
        peft(bias="lora_only", modules_to_save=["embed_tokens"]),
        {"rank": 8, "alpha": 16},
        ["whole modules trained beside the adapter, trained biases"],
    ),
    "not LoRA": (peft(peft_type="IA3"), {}, ["not the configuration of a LoRA adapter"]),
    "not JSON": ("{", {}, ["not the configuration of a LoRA adapter"]),
    "QA-LoRA": (peft(use_qalora=True), {"rank": 8, "alpha": 16}, ["describes quantisation-aware groups"]),
    "no rank": (peft(r="8"), {}, ["has no whole number r"]),
    "an alpha that is no number": (peft(lora_alpha=float("nan")), {"rank": 8}, ["with a number lora_alpha"]),
    "an infinite alpha": (peft(lora_alpha=float("inf")), {"rank": 8}, ["with a number lora_alpha"]),
    "a pattern of no number": (
        peft(alpha_pattern={"down_proj": float("nan")}),
        {"rank": 8, "alpha": 16},
        ["alpha_pattern that is not a mapping"],
    ),
    "a pattern of words": (
        peft(rank_pattern={"down_proj": "4"}),
        {},
        ["rank_pattern that is not a mapping"],
    ),
    "a pattern that is none": (peft(rank_pattern={"(": 4}), {}, ["no regular expression"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_would_mean_something_else_is_refused(case: str, folder: Path) -> None:
    source, lora, expected = REFUSED[case]
    with pytest.raises(CloisterError) as caught:
        check(folder, source, **lora)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert caught.value.message.startswith("lora.initFrom.uri: file://")
    for words in expected:
        assert words in caught.value.message


def test_a_new_adapter_is_not_looked_for() -> None:
    check_initial_adapter(open_storage(environ={}), Lora(), resolve_targets(LLAMA.config, LLAMA.tensors, Lora()))
