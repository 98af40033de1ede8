"""Conversations of many model families: what is stored is what the template writes, and the answers are trained."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from support.prepared import DataJob, chat, make_tokenizer, template

LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
GEMMA = ("<start_of_turn>", "<end_of_turn>")

FAMILIES = {
    "llama3": (LLAMA3, "<|begin_of_text|>", ["Hello 😀<|eot_id|>", "Bye<|eot_id|>"]),
    "mistral": ((), "<s>", [" Hello 😀<|im_end|>", " Bye<|im_end|>"]),
    "phi3": (PHI3, "<s>", ["Hello 😀<|end|>", "Bye<|end|>"]),
    "gemma": (GEMMA, "<bos>", ["Hello 😀<end_of_turn>", "Bye<end_of_turn>"]),
    "marked": ((), None, ["Hello 😀<|im_end|>", "Bye<|im_end|>"]),
    "marked_content": ((), None, ["Hello 😀<|im_end|>", "Bye<|im_end|>"]),
}


def family(job: DataJob, name: str, special: Sequence[str] = (), bos: str | None = None) -> DataJob:
    """The job with a tokenizer that has this family's template and special tokens."""
    folder = make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", template(name), special, bos)
    return DataJob(job.folder, folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_with_their_terminators_are_trained_and_nothing_else(job: DataJob, name: str) -> None:
    special, bos, expected = FAMILIES[name]
    job = family(job, name, special, bos)
    row = chat("Hi é", "Hello 😀", "How are you?", "Bye")
    job.write([row])
    [example] = job.prepare().examples()
    assert example.tokens == job.tokenizer().apply_chat_template(row["messages"])["input_ids"]
    assert job.trained_texts(example) == expected


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma"])
def test_the_beginning_of_sequence_stands_once(job: DataJob, name: str) -> None:
    special, bos, _ = FAMILIES[name]
    job = family(job, name, special, bos)
    job.write([chat("Hi", "Hello")])
    [example] = job.prepare().examples()
    assert example.tokens.count(job.tokenizer().bos_token_id) == 1


def test_smollm2s_own_template(job: DataJob) -> None:
    row = chat("What is 2+2?", "4")
    job.write([row])
    prepared = job.prepare()
    [example] = prepared.examples()
    assert example.tokens == job.tokenizer().apply_chat_template(row["messages"])["input_ids"]
    assert job.trained_texts(example) == ["4<|im_end|>"]
    assert job.tokenizer().convert_ids_to_tokens(prepared.index.stop_token_id) == "<|im_end|>"


@pytest.mark.parametrize("content", [" spaces at the ends \n", "a <|im_end|> inside", "\ue0001\ue001", "x" * 5000])
def test_contents_that_could_be_taken_for_the_template(job: DataJob, content: str) -> None:
    row = chat("Hi", content, "And?", "Bye")
    job.write([row])
    [example] = job.prepare().examples()
    assert example.tokens == job.tokenizer().apply_chat_template(row["messages"])["input_ids"]
    assert job.trained_texts(example) == [f"{content}<|im_end|>", "Bye<|im_end|>"]


def test_a_template_that_strips_contents(job: DataJob) -> None:
    job = family(job, "llama3", LLAMA3, "<|begin_of_text|>")
    rows = [chat(" Hi ", "Hello\n"), chat("Hi", "Hello"), chat("Hi ", "Hello", "And", " Bye ")]
    job.write(rows)
    examples = job.prepare({"deduplicate": False}).examples()
    for row, example in zip(rows, examples, strict=True):
        assert example.tokens == job.tokenizer().apply_chat_template(row["messages"])["input_ids"]
    assert [job.trained_texts(example) for example in examples] == [
        ["Hello<|eot_id|>"],
        ["Hello<|eot_id|>"],
        ["Hello<|eot_id|>", "Bye<|eot_id|>"],
    ]


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3", "chatml"])
def test_the_outline_of_the_roles_changes_nothing(small_job: DataJob, name: str) -> None:
    special, bos, _ = FAMILIES.get(name, ((), None, []))
    job = family(small_job, name, special, bos)
    pieces = ["Hi", " ", "\n", "<|im_end|>", "<|im_start|>assistant\n", "</think>", "<think>a", "\ue0000\ue001", "é😀"]
    generator = random.Random(name)
    outlined, plain = [], []
    for number in range(60):
        texts = ["".join(generator.choices(pieces, k=generator.randint(1, 4))) + str(number) for _ in range(4)]
        row = chat(*texts[: generator.choice((2, 4))])
        outlined.append(row)
        plain.append({"messages": [{**message, "name": "a key that no outline knows"} for message in row["messages"]]})
    job.write(outlined)
    expected = job.prepare().examples()
    job.write(plain)
    assert job.prepare().examples() == expected


def test_last_turn_alone(job: DataJob) -> None:
    job.write([chat("Hi", "Hello", "And?", "Bye")])
    [example] = job.prepare({"trainOn": "LastTurn"}).examples()
    assert job.trained_texts(example) == ["Bye<|im_end|>"]


def test_last_turn_alone_with_generation_marks(job: DataJob) -> None:
    job = family(job, "marked")
    job.write([chat("Hi", "Hello", "And?", "Bye")])
    [example] = job.prepare({"trainOn": "LastTurn"}).examples()
    assert job.trained_texts(example) == ["Bye<|im_end|>"]


def test_all_tokens_but_the_first(job: DataJob) -> None:
    job.write([chat("Hi", "Hello")])
    [example] = job.prepare({"trainOn": "All"}).examples()
    assert example.trained == [False] + [True] * (len(example.tokens) - 1)


def test_messages_after_the_last_answer_are_left_out(job: DataJob) -> None:
    job.write([chat("Hi", "Hello", "Thanks")])
    [example] = job.prepare().examples()
    assert example.tokens == job.tokenizer().apply_chat_template(chat("Hi", "Hello")["messages"])["input_ids"]


def test_a_system_prompt_goes_before_conversations_that_have_none(job: DataJob) -> None:
    own = {"messages": [{"role": "system", "content": "Mine"}, *chat("Hi", "Hello")["messages"]]}
    job.write([chat("Hi", "Hello"), own])
    first, second = job.prepare({"systemPrompt": "Be brief"}).examples()
    text = job.tokenizer().decode(first.tokens)
    assert text.startswith("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi")
    assert job.tokenizer().decode(second.tokens).startswith("<|im_start|>system\nMine<|im_end|>\n<|im_start|>user\nHi")


def test_turns_that_the_template_rewrites_become_examples_of_their_own(job: DataJob) -> None:
    job = family(job, "qwen3")
    first, second = "<think>\nOne\n</think>\n\nHello", "<think>\nTwo\n</think>\n\nBye"
    row = chat("Hi", first, "And?", second)
    job.write([row])
    prepared = job.prepare()
    examples = prepared.examples()
    assert [job.trained_texts(example) for example in examples] == [[f"{first}<|im_end|>"], [f"{second}<|im_end|>"]]
    tokenizer = job.tokenizer()
    for example, messages in zip(examples, (row["messages"][:2], row["messages"]), strict=True):
        assert example.tokens == tokenizer.apply_chat_template(messages)["input_ids"]
    assert prepared.index.report["rewrittenTurns"] == 1
    assert "rewrites earlier turns" in prepared.notes


def test_a_single_turn_of_the_same_template_is_one_example(job: DataJob) -> None:
    job = family(job, "qwen3")
    job.write([chat("Hi", "Hello")])
    [example] = job.prepare().examples()
    assert job.trained_texts(example) == ["<think>\n\n</think>\n\nHello<|im_end|>"]


def test_tool_calls_and_tools_reach_the_template(job: DataJob) -> None:
    job = family(job, "qwen3")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    messages = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Three"},
    ]
    job.write([{"messages": messages, "tools": tools}])
    prepared = job.prepare()
    text = job.tokenizer().decode(prepared.examples()[0].tokens)
    assert '<tools>\n{"type": "function", "function": {"name": "add"' in text
    trained = [text for example in prepared.examples() for text in job.trained_texts(example)]
    wanted = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'
    assert any(text.endswith(wanted) for text in trained)
    assert any(text.endswith("Three<|im_end|>") for text in trained)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
FUNCTION_CALL = [
    {"from": "human", "value": "1+1?"},
    {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
]


def asked(*answers: dict[str, object]) -> dict[str, object]:
    """A question with the assistant's messages."""
    return {"messages": [{"role": "user", "content": "1+1?"}, *({"role": "assistant", **one} for one in answers)]}


DROPPED = {
    "a call without content": ("chatml", asked({"content": "", "tool_calls": [CALL]}), "found tool_calls that"),
    "a call with content": ("chatml", asked({"content": "Well", "tool_calls": [CALL]}), "found tool_calls that"),
    "a call between marks": ("marked", asked({"content": "", "tool_calls": [CALL]}), "found tool_calls that"),
    "a call right before marks": ("marked_content", asked({"content": "", "tool_calls": [CALL]}), "found "),
    "a function_call": ("chatml", {"conversations": FUNCTION_CALL}, "message 2: found tool_calls that"),
    "an answer": ("no_content", asked({"content": "2"}), "message 2: found an answer that"),
    "an answer between marks": ("marked_no_content", asked({"content": "2"}), "line 1: found an answer that"),
}
"""Template, row, and what is found: the template writes nothing of the answer."""


def answerless(name: str) -> str:
    """A template; `no_content` stands for one that asks messages for another key than content."""
    if not name.endswith("no_content"):
        return template(name)
    usual = template({"no_content": "chatml", "marked_no_content": "marked"}[name])
    return usual.replace("message['content']", "(message.text or '')")


@pytest.mark.parametrize("train_on", ["Completions", "LastTurn"])
@pytest.mark.parametrize("case", DROPPED)
def test_an_answer_that_the_template_leaves_out_is_refused(small_job: DataJob, case: str, train_on: str) -> None:
    name, row, found = DROPPED[case]
    small_job.write([row])
    with pytest.raises(CloisterError) as raised:
        small_job.prepare(
            {"trainOn": train_on}, model={"uri": "file:///model", "chatTemplate": {"inline": answerless(name)}}
        )
    assert raised.value.reason is FailureReason.DATASET_INVALID
    assert "train.jsonl, line 1" in raised.value.message
    assert found in raised.value.message
    assert "the chat template does not write" in raised.value.message
    assert "Give a template that writes it in model.chatTemplate" in raised.value.message


def test_calls_that_the_template_leaves_out_are_refused_where_all_is_trained(small_job: DataJob) -> None:
    small_job.write([asked({"content": "", "tool_calls": [CALL]})])
    with pytest.raises(CloisterError, match="message 2: found tool_calls that the chat template does not write"):
        small_job.prepare({"trainOn": "All"})


def test_calls_before_the_trained_answer_need_not_be_written(small_job: DataJob) -> None:
    small_job.write([asked({"content": "", "tool_calls": [CALL]}, {"content": "2"})])
    [example] = small_job.prepare({"trainOn": "LastTurn"}).examples()
    assert small_job.trained_texts(example) == ["2<|im_end|>"]


def test_tools_that_the_template_leaves_out_are_refused(small_job: DataJob) -> None:
    small_job.write([chat("Hi", "Hello"), {**chat("Hi", "Bye"), "tools": TOOLS}])
    with pytest.raises(CloisterError) as raised:
        small_job.prepare()
    assert "line 2, tools: found tool definitions that the chat template does not write" in raised.value.message
    assert "or remove the tools from the rows" in raised.value.message


def test_a_template_that_does_not_begin_an_answer_with_its_own_prompt_is_refused(job: DataJob) -> None:
    odd = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    odd += "{% if add_generation_prompt %}<|im_start|>assistant: <think>{% endif %}"
    job.write([chat("Hi", "Hello")])
    with pytest.raises(CloisterError, match="does not begin with its own generation prompt") as raised:
        job.prepare(model={"uri": "file:///model", "chatTemplate": {"inline": odd}})
    assert raised.value.reason is FailureReason.DATASET_INVALID


def test_a_template_without_a_terminator_is_refused(job: DataJob) -> None:
    endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    endless += "{% if add_generation_prompt %}assistant: {% endif %}"
    job.write([chat("Hi", "Hello")])
    with pytest.raises(CloisterError, match="never learn where to stop") as raised:
        job.prepare(model={"uri": "file:///model", "chatTemplate": {"inline": endless}})
    assert raised.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_a_template_from_a_file(job: DataJob, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(template("marked"))
    job.write([chat("Hi", "Hello")])
    [example] = job.prepare(model={"uri": "file:///model", "chatTemplate": {"uri": f"file://{path}"}}).examples()
    assert job.tokenizer().decode(example.tokens).startswith("<|im_start|>user\nHi")


def test_templates_run_in_the_sandbox_only(job: DataJob) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + template("marked")
    job.write([chat("Hi", "Hello")])
    with pytest.raises(CloisterError, match="the chat template fails") as raised:
        job.prepare(model={"uri": "file:///model", "chatTemplate": {"inline": escape}})
    assert "SecurityError" in raised.value.message


def test_conversations_without_any_template_are_refused(job: DataJob) -> None:
    folder = make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", None)
    job = DataJob(job.folder, folder)
    job.write([chat("Hi", "Hello")])
    with pytest.raises(CloisterError, match="the model has no chat template") as raised:
        job.prepare()
    assert raised.value.reason is FailureReason.DATASET_INVALID
    assert "model.chatTemplate" in raised.value.message
