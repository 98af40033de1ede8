"""A published adapter answers in llama.cpp, after llama.cpp's own converter, as it does in stock PEFT."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import llama_cpp
from support.smollm2 import cached_folder, quiet_transformers

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "01-quickstart"
ROWS = 5
TOKENS = 80

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the quickstart publishes."""
    folder = tmp_path_factory.mktemp("quickstart")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "scripts/quickstart.py", "--folder", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "adapter"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model as a GGUF file, none of its numbers rounded."""
    file = tmp_path_factory.mktemp("gguf") / "base.gguf"
    llama_cpp.convert("convert_hf_to_gguf.py", cached_folder(), "--outtype", "f32", "--outfile", file)
    return file


def converted(adapter: Path) -> Path:
    """The adapter as a GGUF file beside its own."""
    file = adapter / "adapter.gguf"
    arguments = (adapter, "--base", cached_folder(), "--outtype", "f32", "--outfile", file)
    llama_cpp.convert("convert_lora_to_gguf.py", *arguments)
    return file


@dataclass(frozen=True)
class HeldOut:
    """Held-out orders, as whoever asks sends them, and what is expected."""

    conversations: list[Any]
    expected: list[str]


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    rows = [json.loads(line)["messages"] for line in (EXAMPLE / "holdout.jsonl").read_text().splitlines()[:ROWS]]
    return HeldOut([row[:-1] for row in rows], [row[-1]["content"] for row in rows])


def peft_answers(adapter: Path, conversations: list[Any]) -> list[str]:
    """Greedy answers of stock transformers with stock PEFT, in float32."""
    with quiet_transformers():
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(cached_folder())
        model = AutoModelForCausalLM.from_pretrained(cached_folder(), dtype=torch.float32)
        model = PeftModel.from_pretrained(model, adapter).eval()
    found = []
    for messages in conversations:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
        found.append(str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)))
    return found


def test_llama_cpp_answers_as_stock_peft_does(adapter: Path, base: Path, held_out: HeldOut) -> None:
    theirs = llama_cpp.answers(base, converted(adapter), held_out.conversations, tokens=TOKENS)
    assert theirs == peft_answers(adapter, held_out.conversations)
    assert theirs == held_out.expected
    assert llama_cpp.answers(base, None, held_out.conversations[:1], tokens=TOKENS) != theirs[:1]


def test_a_rank_stabilised_adapter_wants_the_root_of_its_rank_as_its_scale(
    adapter: Path, base: Path, held_out: HeldOut, tmp_path: Path
) -> None:
    """docs/serving.md says so: the converter keeps alpha alone, and llama.cpp divides it by the rank."""
    same = tmp_path / "rank-stabilised"
    shutil.copytree(adapter, same)
    config = json.loads((same / "adapter_config.json").read_text())
    root = math.sqrt(config["r"])
    config |= {"use_rslora": True, "lora_alpha": config["lora_alpha"] / root}
    (same / "adapter_config.json").write_text(json.dumps(config))
    asked = held_out.conversations[:2]
    file = converted(same)
    assert peft_answers(same, asked) == held_out.expected[:2]
    assert llama_cpp.answers(base, file, asked, tokens=TOKENS, scale=root) == held_out.expected[:2]
    assert llama_cpp.answers(base, file, asked, tokens=TOKENS) != held_out.expected[:2]
