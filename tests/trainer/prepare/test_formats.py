"""Rows of every format and file become the same examples, and what was detected is said."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.prepared import DataJob, chat, make_tokenizer

ROW = chat("Hi", "Hello")
SHARE_GPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
AS_MESSAGES = {
    "Messages": ROW,
    "Messages in conversations": {"conversations": ROW["messages"]},
    "Messages with parts": chat([{"type": "text", "text": "Hi"}], "Hello"),  # type: ignore[arg-type]
    "ShareGPT": SHARE_GPT,
    "PromptCompletion": {"prompt": ROW["messages"][:1], "completion": ROW["messages"][1:]},
    "Alpaca": {"instruction": "Hi", "input": "", "output": "Hello", "text": "### Hi Hello"},
}


@pytest.mark.parametrize("case", AS_MESSAGES)
def test_every_format_of_a_conversation_gives_the_same_example(job: DataJob, case: str) -> None:
    job.write([AS_MESSAGES[case]])
    prepared = job.prepare()
    [example] = prepared.examples()
    assert example.tokens == job.tokenizer().apply_chat_template(ROW["messages"])["input_ids"]
    assert job.trained_texts(example) == ["Hello<|im_end|>"]
    assert f"train.jsonl: {case.split(maxsplit=1)[0]} (" in prepared.said.replace("/data:", "/train.jsonl:")


def test_what_was_detected_and_left_out_is_said_and_reported(small_job: DataJob) -> None:
    small_job.write([{"id": 1, **SHARE_GPT}])
    prepared = small_job.prepare()
    assert 'ShareGPT (messages from column "conversations"); columns left out: id.' in prepared.said
    [source] = prepared.index.report["sources"]
    assert source["format"] == "ShareGPT"
    assert source["columns"] == {"messages": "conversations"}
    assert source["columnsLeftOut"] == ["id"]


def test_the_jobs_own_column_names(job: DataJob) -> None:
    job.write([{"question": "Hi", "context": "There", "response": "Hello"}])
    columns = {"instruction": "question", "input": "context", "output": "response"}
    [example] = job.prepare({"columns": columns}).examples()
    wanted = chat("Hi\n\nThere", "Hello")["messages"]
    assert example.tokens == job.tokenizer().apply_chat_template(wanted)["input_ids"]


def test_share_gpt_with_a_function_call(job: DataJob) -> None:
    from support.prepared import template

    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    turns = [{"from": "human", "value": "1+1"}, call, {"from": "observation", "value": "2"}]
    job.write([{"conversations": [*turns, {"from": "gpt", "value": "Two"}], "system": "Count"}])
    model = {"uri": "file:///model", "chatTemplate": {"inline": template("qwen3")}}
    text = job.tokenizer().decode(job.prepare(model=model).examples()[-1].tokens)
    assert text.startswith("<|im_start|>system\nCount<|im_end|>\n<|im_start|>user\n1+1<|im_end|>")
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text


def test_only_the_completion_of_a_prompt_with_earlier_answers_is_trained(job: DataJob) -> None:
    messages = chat("Hi", "Hello", "And?", "Bye")["messages"]
    job.write([{"prompt": messages[:3], "completion": messages[3:]}])
    [example] = job.prepare().examples()
    assert job.trained_texts(example) == ["Bye<|im_end|>"]
    assert example.tokens == job.tokenizer().apply_chat_template(messages)["input_ids"]


def test_string_prompts_are_joined_without_the_template(job: DataJob) -> None:
    job.write([{"prompt": "Q: Hi\nA:", "completion": " Hello"}])
    prepared = job.prepare()
    [example] = prepared.examples()
    assert job.tokenizer().decode(example.tokens) == "Q: Hi\nA: Hello<|im_end|>"
    assert job.trained_texts(example) == [" Hello<|im_end|>"]
    assert "without the model's chat template" in prepared.notes
    assert prepared.index.stop_token_id == job.tokenizer().eos_token_id


def test_a_token_over_the_border_is_trained_and_told(job: DataJob) -> None:
    job.write([{"prompt": "Answer: ", "completion": "yes"}])
    prepared = job.prepare()
    [example] = prepared.examples()
    assert job.trained_texts(example) == [" yes<|im_end|>"]
    assert prepared.index.report["mergedBorders"] == 1
    assert "a token reaches over the border" in prepared.notes


@pytest.mark.parametrize("row", [{"text": "Once upon a time"}, {"prompt": "Once upon", "completion": " a time"}])
def test_plain_text_begins_and_ends_as_the_tokenizer_does_it(job: DataJob, row: dict[str, str]) -> None:
    job = DataJob(job.folder, make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", None, (), "<s>"))
    job.write([row])
    [example] = job.prepare().examples()
    assert example.tokens == [*job.tokenizer()("Once upon a time")["input_ids"], job.tokenizer().eos_token_id]
    assert job.tokenizer().decode(example.tokens) == "<s>Once upon a time<|im_end|>"
    assert example.trained[0] is False


def test_marks_that_the_text_has_already_are_not_doubled(job: DataJob) -> None:
    job = DataJob(job.folder, make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", None, (), "<s>"))
    job.write([{"text": "<s>Once upon a time<|im_end|>"}])
    [example] = job.prepare().examples()
    assert job.tokenizer().decode(example.tokens) == "<s>Once upon a time<|im_end|>"


def test_alpaca_without_a_template(job: DataJob) -> None:
    job = DataJob(job.folder, make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", None))
    job.write([{"instruction": "Greet {me}", "input": "Ann", "output": "Hello"}])
    [example] = job.prepare().examples()
    text = job.tokenizer().decode(example.tokens)
    assert "### Instruction:\nGreet {me}\n\n### Input:\nAnn\n\n### Response:\nHello<|im_end|>" in text
    assert job.trained_texts(example) == ["Hello<|im_end|>"]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


FILES = {
    "lines.jsonl": lambda rows: b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(row) for row in rows).encode(),
    "array.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "lines.json": lambda rows: "\n".join(json.dumps(row) for row in rows).encode(),
    "table.parquet": as_parquet,
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_examples(small_job: DataJob, name: str) -> None:
    rows = [{"id": i, **chat(f"Héllo {i} \u2028", f"Answer {i}")} for i in range(1200)]
    small_job.write_bytes(FILES[name](rows), name)
    prepared = small_job.prepare({"uri": f"file://{small_job.folder}/data/{name}"})
    small_job.write(rows)
    expected = small_job.prepare(
        {"uri": f"file://{small_job.folder}/data/train.jsonl", "cacheUri": f"file://{small_job.folder}/cache"}
    )
    assert prepared.examples() == expected.examples()
    assert prepared.index.digest == expected.index.digest
    assert len(prepared.examples()) == 1200


def test_null_columns_of_parquet_structs_are_left_out(small_job: DataJob) -> None:
    with_calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    rows = [ROW, {"messages": [ROW["messages"][0], with_calls]}]
    small_job.write_bytes(as_parquet(rows), "table.parquet")
    from support.prepared import template

    model = {"uri": "file:///model", "chatTemplate": {"inline": template("qwen3")}}
    first, second = small_job.prepare(model=model).examples()
    assert small_job.trained_texts(first) == ["<think>\n\n</think>\n\nHello<|im_end|>"]
    assert '{"name": "f", "arguments": {}}' in small_job.tokenizer().decode(second.tokens)


def test_a_prefix_with_several_files_is_one_dataset(small_job: DataJob) -> None:
    small_job.write([chat("a", "1")], "part/a.jsonl")
    small_job.write_bytes(json.dumps([chat("b", "2")]).encode(), "part/b.json")
    small_job.write_bytes(as_parquet([chat("c", "3")]), "c.parquet")
    small_job.write_bytes(b"not data", "README.md")
    prepared = small_job.prepare()
    assert sorted(small_job.trained_texts(example)[0][0] for example in prepared.examples()) == ["1", "2", "3"]
    assert prepared.index.report["sources"][0]["fileCount"] == 3
