"""The small real model that other tests and the quickstart train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import smollm2


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2.cached_folder()


def test_the_folder_is_one_that_people_have(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
    } <= names
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert 268e6 < (folder / "model.safetensors").stat().st_size < 270e6


def test_the_weights_know_english_and_the_template_chats(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_a_conversion_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "convert", cut_short)
    with pytest.raises(KeyboardInterrupt):
        smollm2.cached_folder()
    assert list((tmp_path / "cloister" / "models").iterdir()) == []
