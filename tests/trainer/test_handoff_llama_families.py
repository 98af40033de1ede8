"""What the table says of llama.cpp: the adapter of each listed family acts there as it does in stock PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cloister_api.spec_cluster import Server
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.train.lora import save_adapter
from support import llama_cpp
from support.stock_peft import IDS, logits_of_stock
from support.tiny_models import VOCABULARY, adapter_state, save_tiny_model, with_adapter

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

LISTED = [name for name, family in FAMILIES.items() if Server.LLAMA_CPP in family.servers]
TAKEN_BUT_WRONG = ["gpt_oss"]
"""The converter takes the adapter, and llama.cpp answers otherwise than PEFT."""
NOT_RUN = ["minimax_m2"]
"""The converter takes the adapter, and this llama.cpp ends itself when it loads the tiny base."""
REFUSED = [name for name in FAMILIES if name not in {*LISTED, *TAKEN_BUT_WRONG, *NOT_RUN}]
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "phi": {"num_key_value_heads": 4, "intermediate_size": 128},
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": 256},
    "olmoe": {"num_key_value_heads": 4},
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
}
"""What llama.cpp takes for granted of published models: Phi-2 and OLMoE share no keys, windows of Mistral and Phi-3 are
longer than the text, and Gemma's queries are scaled by the head dimension."""
ROUNDING = 5e-3
"""llama.cpp looks GELU up in a table of float16; families without it differ by 1e-5."""


def converted(model_type: str, folder: Path) -> Path:
    """The GGUF file of an adapter that is not without effect; its base and PEFT's form lie beside it."""
    base = save_tiny_model(folder / "base", model_type, **AS_PUBLISHED.get(model_type, {}))
    module = with_adapter(base, random_b=True)
    save_adapter(module.model, adapter_state(module.model), folder / "adapter", "s3://models/base")
    file = folder / "adapter.gguf"
    arguments = (folder / "adapter", "--base", base, "--outtype", "f32", "--outfile", file)
    llama_cpp.convert("convert_lora_to_gguf.py", *arguments)
    assert llama_cpp.count_tensors(file) == len(adapter_state(module.model))
    return file


def differences(folder: Path, adapter: Path) -> tuple[float, float]:
    """How far llama.cpp is from stock PEFT with the adapter, and how far the adapter moves the logits."""
    base = folder / "base.gguf"
    llama_cpp.convert_without_vocabulary(folder / "base", VOCABULARY, base)
    alone, adapted = logits_of_stock(folder / "base", folder / "adapter", "eager")
    theirs = torch.from_numpy(llama_cpp.logits(base, adapter, IDS[0].tolist()))
    return float((theirs - adapted[0]).abs().max()), float((adapted - alone).abs().max())


@pytest.mark.parametrize("model_type", LISTED)
def test_llama_cpp_has_the_logits_of_stock_peft(model_type: str, tmp_path: Path) -> None:
    difference, effect = differences(tmp_path, converted(model_type, tmp_path))
    assert difference <= ROUNDING
    assert effect > 100 * ROUNDING


@pytest.mark.parametrize("model_type", TAKEN_BUT_WRONG)
def test_a_family_that_llama_cpp_takes_and_computes_otherwise_is_not_listed(model_type: str, tmp_path: Path) -> None:
    difference, _ = differences(tmp_path, converted(model_type, tmp_path))
    assert difference > 100 * ROUNDING


@pytest.mark.parametrize("model_type", REFUSED)
def test_the_converter_refuses_a_family_that_is_not_listed(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"is not supported|NotImplementedError|Can not map tensor"):
        converted(model_type, tmp_path)
