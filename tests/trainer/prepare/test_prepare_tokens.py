"""The whole way of a dataset: lengths, selection, samples, report, cache, resuming, an S3 store."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.prepare.data import prepare_tokens
from cloister_trainer.prepare.shards import GroupResult
from cloister_trainer.reporter import PlainConsole, Reporter
from support.disk import largest_file
from support.prepared import DataJob, Prepared, chat
from support.seaweedfs import SeaweedFS

STORY = " ".join(f"word{i}" for i in range(400))


def test_truncating_keeps_trained_tokens(job: DataJob) -> None:
    job.write([chat("Hi", STORY), chat(STORY, "Hello"), chat("Hi", "Hello")])
    prepared = job.prepare(training={"maxLength": 64})
    long_answer, long_question, short = prepared.examples()
    assert len(long_answer.tokens) == len(long_question.tokens) == 64
    assert job.trained_texts(long_answer)[0].startswith("word0 word1")
    assert job.trained_texts(long_question) == ["Hello<|im_end|>"]
    assert job.tokenizer().decode(long_question.tokens).startswith("<|im_start|>")
    assert "word399<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>" in job.tokenizer().decode(long_question.tokens)
    assert len(short.tokens) < 64
    assert prepared.index.report["truncated"] == 2
    assert "2 of 3 examples were longer than 64 tokens and are cut." in prepared.notes


def test_dropping(job: DataJob) -> None:
    job.write([chat("Hi", STORY), chat("Hi", "Hello")])
    prepared = job.prepare({"tooLong": "Drop"}, training={"maxLength": 64})
    assert len(prepared.examples()) == 1
    assert prepared.index.report["dropped"] == 1


def test_splitting_text_loses_no_token(job: DataJob) -> None:
    job.write([{"text": STORY}])
    prepared = job.prepare({"format": "Text", "tooLong": "Split"}, training={"maxLength": 64})
    pieces = prepared.examples()
    assert [token for piece in pieces for token in piece.tokens] == [
        *job.tokenizer()(STORY)["input_ids"],
        job.tokenizer().eos_token_id,
    ]
    assert all(piece.trained == [False] + [True] * (len(piece.tokens) - 1) for piece in pieces)
    assert prepared.index.longest == 64


def test_the_length_of_the_model_is_the_default(job: DataJob) -> None:
    job.write([chat("Hi", STORY)])
    assert job.prepare(limit=128).index.longest == 128


def test_duplicates_are_kept_once(small_job: DataJob) -> None:
    small_job.write([chat("Hi", "Hello"), chat("Hi", "Bye"), chat("Hi", "Hello")])
    prepared = small_job.prepare()
    assert len(prepared.examples()) == 2
    assert prepared.index.report["duplicates"] == 1
    assert len(small_job.prepare({"deduplicate": False}).examples()) == 3


def test_weights_repeat_examples(small_job: DataJob) -> None:
    once = small_job.write([chat(f"once {i}", "a") for i in range(40)], "once.jsonl")
    often = small_job.write([chat(f"often {i}", "a") for i in range(200)], "often.jsonl")
    never = small_job.write([{"nonsense": 1}], "never.jsonl")
    sources = [{"uri": once}, {"uri": often, "weight": 2.25}, {"uri": never, "weight": 0}]
    index = small_job.prepare({"sources": sources}).index
    examples = small_job.prepare({"sources": sources}).examples()
    times = [example.repeats for example in examples]
    assert times[:40] == [1] * 40
    assert set(times[40:]) == {2, 3}
    assert 25 < times.count(3) < 75
    assert index.epoch_examples == sum(times)
    assert index.epoch_tokens == sum(example.repeats * len(example.tokens) for example in examples)
    assert index.epoch_trained_tokens == sum(example.repeats * sum(example.trained) for example in examples)


def test_five_percent_of_two_hundred_rows_are_held_out(small_job: DataJob) -> None:
    rows = [chat(f"Question {i}", f"Answer {i}") for i in range(400)]
    small_job.write(rows[:199])
    assert small_job.prepare({"validation": None}).index.validation_examples == 0
    small_job.write(rows)
    prepared = small_job.prepare({"validation": None}, evaluation={"samples": 3})
    train, validation = prepared.examples(), prepared.examples("validation")
    assert len(train) + len(validation) == 400
    assert 8 <= len(validation) <= 35
    assert prepared.index.validation_examples == len(validation)
    assert len(prepared.index.samples) == 3
    tokenizer = small_job.tokenizer()
    for sample in prepared.index.samples:
        number = sample.answer.removeprefix("Answer ")
        messages = chat(f"Question {number}")["messages"]
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert sample.prompt == asked
        assert any(example.tokens[: len(asked)] == asked for example in validation)


def test_a_separate_validation_source(small_job: DataJob) -> None:
    train = small_job.write([chat(f"Question {i}", "a") for i in range(20)])
    validation = small_job.write([chat(f"Question {i}", "a") for i in range(15, 30)], "validation.jsonl")
    prepared = small_job.prepare({"uri": train, "validation": {"uri": validation, "maxExamples": 10}})
    assert len(prepared.examples()) == 20
    assert len(prepared.examples("validation")) == 10
    overlap = prepared.index.report["overlap"]
    assert 0 < overlap["rows"] <= 5
    assert overlap["prompts"] == overlap["rows"]
    assert "training rows are also in the validation set" in prepared.notes


def test_the_report_counts_lengths(job: DataJob) -> None:
    job.write([chat("Hi", "Hello"), chat("Hi", STORY)])
    lengths = job.prepare().index.report["lengths"]
    short, long = (len(example.tokens) for example in job.prepare().examples())
    assert (lengths["min"], lengths["max"]) == (short, long)
    assert lengths["percentiles"]["50"] == short
    assert lengths["percentiles"]["99"] == long
    assert sum(lengths["histogram"]["examples"]) == 2


def test_tokens_in_the_cache_are_used_again(small_job: DataJob) -> None:
    small_job.write([chat("Hi", "Hello")])
    cache = {"cacheUri": f"file://{small_job.folder}/cache"}
    first = small_job.prepare(cache)
    assert first.uri == f"file://{small_job.folder}/cache/{first.index.digest}"
    again = small_job.prepare(cache)
    assert again.index == first.index
    assert "nothing is tokenised" in again.said
    other = small_job.prepare({**cache, "trainOn": "All"})
    assert other.index.digest != first.index.digest
    assert "nothing is tokenised" not in other.said


def test_tokens_of_another_job_are_reported_with_this_jobs_files(small_job: DataJob) -> None:
    cache = {"cacheUri": f"file://{small_job.folder}/cache"}
    first_file = small_job.write([chat("Hi", "Hello")], "first.jsonl")
    second_file = small_job.write([{**chat("Hi", "Hello"), "id": 1}], "second.jsonl")
    first = small_job.prepare({**cache, "uri": first_file})
    second = small_job.prepare({**cache, "uri": second_file})
    earlier = small_job.prepare({"uri": first_file})
    later = small_job.prepare(
        {"uri": second_file},
        output={"uri": f"file://{small_job.folder}/out2"},
        resumeFrom={"uri": earlier.uri.removesuffix("/tokens")},
    )
    assert first.index.report["sources"][0]["files"] == [first_file]
    assert later.uri == earlier.uri
    for prepared in (second, later):
        assert "nothing is tokenised" in prepared.said
        [source] = prepared.index.report["sources"]
        assert (source["uri"], source["files"]) == (second_file, [second_file])
        assert source["columnsLeftOut"] == ["id"]
        assert prepared.index.report["lengths"] == first.index.report["lengths"]


def test_tokens_of_another_job_are_held_against_this_jobs_model(small_job: DataJob) -> None:
    small_job.write([chat("Hi", "Hello")])
    cache = {"cacheUri": f"file://{small_job.folder}/cache"}
    first = small_job.prepare(cache)
    assert first.index.largest_id == max(max(example.tokens) for example in first.examples())
    folder = small_job.folder / "smaller"
    shutil.copytree(small_job.tokenizer_folder, folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": first.index.largest_id}))
    with pytest.raises(CloisterError, match="the tokenizer is not this model's"):
        DataJob(small_job.folder, folder).prepare(cache)
    assert small_job.prepare(cache).index == first.index, "the first job's tokens stay"


def test_changed_rows_replace_the_runs_tokens(small_job: DataJob) -> None:
    small_job.write([chat("Hi", "Hello")])
    first = small_job.prepare()
    small_job.write([chat("Hi", "Bye")])
    second = small_job.prepare()
    assert second.uri == first.uri
    assert second.index.digest != first.index.digest
    assert small_job.trained_texts(second.examples()[0]) == ["Bye<|im_end|>"]


def test_what_was_left_for_other_rows_is_deleted(small_job: DataJob) -> None:
    tokens = small_job.folder / "out" / "runs" / small_job.run().uid / "tokens"
    (tokens / "groups").mkdir(parents=True)
    (tokens / "groups" / "00000.json").write_bytes(GroupResult("another digest").to_json())
    (tokens / "train-00000-7.safetensors").write_bytes(b"stale")
    small_job.write([chat("Hi", "Hello")])
    small_job.prepare()
    assert sorted(path.name for path in tokens.iterdir()) == ["index.json", "train-00000-0.safetensors"]


def test_a_full_local_disk_is_told_and_leaves_nothing(small_job: DataJob) -> None:
    small_job.write([chat(f"Question {i}", "a" * 1000) for i in range(50)])
    with largest_file(100_000), pytest.raises(CloisterError, match="The disk is full while writing") as raised:
        small_job.prepare()
    assert raised.value.reason is FailureReason.LOCAL_DISK_FULL
    assert f"{small_job.folder}/scratch/train-00000-0.safetensors" in raised.value.message
    assert not list((small_job.folder / "scratch").iterdir())
    assert small_job.prepare().index.epoch_examples == 50


def test_shards_do_not_depend_on_the_number_of_processes(job: DataJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister_trainer.prepare.readers.lines.CHUNK_BYTES", 1 << 15)
    job.write([chat(f"Question {i}", STORY) for i in range(300)])
    one = job.prepare({"validation": None})
    job.fresh()
    two = job.prepare({"validation": None}, processes=2)
    assert one.index == two.index


def test_an_s3_store(job: DataJob, seaweedfs: SeaweedFS, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister_trainer.storage import open_storage

    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    storage = open_storage()
    rows = "".join(json.dumps(chat(f"Question {i}", "a")) + "\n" for i in range(50)).encode()
    storage.write(f"s3://{bucket}/data/train.jsonl", rows)
    dataset = {"uri": f"s3://{bucket}/data", "cacheUri": f"s3://{bucket}/cache"}
    run = job.run(dataset, output={"uri": f"s3://{bucket}/out"})
    said = Reporter(PlainConsole(io.StringIO()))
    uri, index = prepare_tokens(run, storage, job.tokenizer_folder, 2048, job.folder / "scratch", said, 1)
    assert Prepared(uri, index, "").index.epoch_examples == 50
    names = {entry.name for entry in storage.list(uri)}
    assert names == {"index.json", "train-00000-0.safetensors"}
    assert not list((job.folder / "scratch").iterdir())


INTERRUPTED = """
import sys
from pathlib import Path
from cloister_trainer.prepare import tokenise
from cloister_trainer.prepare.readers import lines
from support.prepared import DataJob

if __name__ == "__main__":
    lines.CHUNK_BYTES = 1 << 15
    tokenise.GROUP_BYTES = 1 << 16
    DataJob(Path(sys.argv[1]), Path(sys.argv[2])).prepare({"validation": None}, processes=2)
"""


def test_a_killed_prepare_goes_on_with_the_next_group(job: DataJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister_trainer.prepare.readers.lines.CHUNK_BYTES", 1 << 15)
    monkeypatch.setattr("cloister_trainer.prepare.tokenise.GROUP_BYTES", 1 << 16)
    job.write([chat(f"Question {i}", STORY) for i in range(600)])
    tokens = job.folder / "out" / "runs" / job.run().uid / "tokens"
    script = job.folder / "interrupted.py"
    script.write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, script, job.folder, job.tokenizer_folder], env=environment, start_new_session=True
    )
    try:
        wait_for(lambda: len(list(tokens.glob("groups/*.json"))) >= 2 or child.poll() is not None)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        wait_for(lambda: not group_members(child.pid))
    finally:
        for pid in group_members(child.pid):
            os.kill(pid, signal.SIGKILL)
    assert not (tokens / "index.json").exists()
    finished = [json.loads(path.read_text()) for path in tokens.glob("groups/*.json")]
    kept = {shard["file"]["name"]: (tokens / shard["file"]["name"]).stat().st_mtime_ns
            for group in finished for shard in group["train"]}  # fmt: skip
    resumed = job.prepare({"validation": None})
    assert {name: (tokens / name).stat().st_mtime_ns for name in kept} == kept
    assert not list(tokens.glob("groups/*"))
    job.fresh()
    assert job.prepare({"validation": None}).index == resumed.index


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def group_members(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name_and_rest = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(name_and_rest[3]) == session and name_and_rest[0] != "Z":
            found.append(int(path.parent.name))
    return found
