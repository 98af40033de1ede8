"""Real templates, turn by turn: what stands where, what is trained, and with which token a turn ends."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from support.chat_corpus import (
    CALLS,
    CHATML,
    CORPUS,
    DEEPSEEK,
    DEEPSEEK_BEGIN,
    DEEPSEEK_END,
    GLM,
    TOOLS,
    TURNS,
    ChatCase,
    models_own,
)
from support.prepared import DataJob, Prepared, StoredExample, chat, make_tokenizer, template

MARKED = [name for name in CORPUS if name.endswith("marks")]


def job_of(case: ChatCase, folder: Path, tokenizer_folder: Path) -> DataJob:
    """A dataset for a model whose tokenizer has the case's template and special tokens."""
    made = make_tokenizer(tokenizer_folder, folder / "tokenizer", case.template, case.special, case.bos, case.eos)
    job = DataJob(folder, made)
    if case.stops:
        ids = job.tokenizer().convert_tokens_to_ids(list(case.stops))
        (made / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return job


def with_system(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "messages": [{"role": "system", "content": "Be brief"}, *row["messages"]]}


def rows_of(case: ChatCase) -> list[dict[str, Any]]:
    return [TURNS, with_system(TURNS)] if case.system else [TURNS]


def all_trained(job: DataJob, prepared: Prepared) -> list[str]:
    return [text for example in prepared.examples() for text in job.trained_texts(example)]


def trained_from(example: StoredExample) -> list[int]:
    """Where each run of trained tokens begins."""
    return [at for at, (before, now) in enumerate(pairwise([False, *example.trained])) if now and not before]


@pytest.mark.parametrize("name", CORPUS)
def test_each_answer_is_trained_with_its_terminator_and_nothing_else(
    name: str, tmp_path: Path, small_tokenizer: Path
) -> None:
    case = CORPUS[name]
    job = job_of(case, tmp_path, small_tokenizer)
    rows = rows_of(case)
    job.write(rows)

    prepared = job.prepare({"deduplicate": False})

    assert all_trained(job, prepared) == [*case.turns] * len(rows)
    tokenizer = job.tokenizer()
    assert tokenizer.convert_ids_to_tokens(prepared.index.stop_token_id) == case.stop
    ends = [tokenizer.apply_chat_template(row["messages"][:end])["input_ids"] for row in rows for end in cuts(row)]
    for example in prepared.examples():
        written = example.tokens[:-1] if case.stops else example.tokens
        assert written in ends, "the tokens are those of transformers"
        text = tokenizer.decode(example.tokens)
        assert case.system or text.startswith(case.begins)
        if case.bos is not None:
            assert text.startswith(case.bos) and not text.startswith(case.bos * 2), "it begins once"
        assert not text.endswith(case.eos * 2), "it ends once"
    assert written == ends[-1]
    assert tokenizer.decode(prepared.examples()[0].tokens).startswith(case.begins)


def cuts(row: dict[str, Any]) -> list[int]:
    """Where a conversation ends after an assistant's turn."""
    return [at + 1 for at, message in enumerate(row["messages"]) if message["role"] == "assistant"]


@pytest.mark.parametrize("name", [name for name in CORPUS if name not in MARKED])
def test_each_answer_begins_where_the_model_is_asked_for_it(name: str, tmp_path: Path, small_tokenizer: Path) -> None:
    """What a server renders for a question is exactly what stands before the trained tokens."""
    case = CORPUS[name]
    job = job_of(case, tmp_path, small_tokenizer)
    row = with_system(TURNS) if case.system else TURNS
    job.write([row])

    asked = [
        job.tokenizer().apply_chat_template(row["messages"][: end - 1], add_generation_prompt=True)["input_ids"]
        for end in cuts(row)
    ]
    found = [example.tokens[:at] for example in job.prepare().examples() for at in trained_from(example)]

    assert found == asked


@pytest.mark.parametrize("name", [name for name, case in CORPUS.items() if case.calls is not None])
def test_calls_of_tools_are_trained_and_their_results_are_not(name: str, tmp_path: Path, small_tokenizer: Path) -> None:
    case = CORPUS[name]
    job = job_of(case, tmp_path, small_tokenizer)
    job.write([{**CALLS, "tools": TOOLS} if case.tools else CALLS])

    prepared = job.prepare()

    assert all_trained(job, prepared) == [*(case.calls or ())]
    text = job.tokenizer().decode(prepared.examples()[-1].tokens)
    assert not case.tools or "Adds" in text, "the model is told of its tools"


@pytest.mark.parametrize("name", [name for name, case in CORPUS.items() if case.calls is None])
def test_calls_that_a_template_does_not_write_are_refused(name: str, tmp_path: Path, small_tokenizer: Path) -> None:
    job = job_of(CORPUS[name], tmp_path, small_tokenizer)
    job.write([{**CALLS, "tools": TOOLS}])
    with pytest.raises(CloisterError) as refused:
        job.prepare()
    assert refused.value.reason is FailureReason.DATASET_INVALID


OLMO3 = ChatCase(template("olmo3"), CHATML, "<|endoftext|>", (), "", "<|im_end|>")
THOUGHTS = chat("Hi", "<think>One</think>Hello ", "How?", "<think>Two</think>Bye")


def test_a_prompt_that_begins_the_answer_is_not_trained(tmp_path: Path, small_tokenizer: Path) -> None:
    """Olmo 3 is asked with <think>, and ends a last turn otherwise than one before it: an example for each."""
    job = job_of(OLMO3, tmp_path, small_tokenizer)
    job.write([THOUGHTS])
    prepared = job.prepare()
    assert [job.trained_texts(example) for example in prepared.examples()] == [
        ["One</think>Hello <|endoftext|>"],
        ["Two</think>Bye<|endoftext|>"],
    ]
    text = job.tokenizer().decode(prepared.examples()[1].tokens)
    assert text.startswith("<|im_start|>system\nYou are OLMo") and "Hello <|im_end|>\n<|im_start|>user" in text


REFUSED = {
    "an answer without the thought it is asked for": (OLMO3, TURNS, "not begin with its own generation prompt"),
    "DeepSeek-R1's, which drops thoughts": (
        ChatCase(models_own("deepseek_r1_distill"), DEEPSEEK, DEEPSEEK_END, (), "", "", DEEPSEEK_BEGIN),
        THOUGHTS,
        "not begin with its own generation prompt",
    ),
    "Mistral's, which asks with a system prompt that it then drops": (
        CORPUS["Mistral 0.3"], with_system(TURNS), "not begin with its own generation prompt",
    ),
    "Gemma's without a system role": (CORPUS["Gemma"], with_system(TURNS), "System role not supported"),
    "GLM's, which ends no turn, without stop tokens": (
        ChatCase(models_own("glm4moe"), GLM, "<|endoftext|>", (), "", ""), TURNS, "never learn where to stop",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_learned_wrongly_is_refused(name: str, tmp_path: Path, small_tokenizer: Path) -> None:
    case, row, found = REFUSED[name]
    job = job_of(case, tmp_path, small_tokenizer)
    job.write([row])
    with pytest.raises(CloisterError, match=found) as refused:
        job.prepare()
    assert "model.chatTemplate" in refused.value.message
