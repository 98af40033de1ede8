"""examples/02-chat-dataset, as `cloister preview` shows it and prepare stores it, with SmolLM2's own template."""

from __future__ import annotations

import json

from cloister_trainer.prepare.preview import preview
from support.examples import EXAMPLES, Object, of_kind
from support.prepared import DataJob

FOLDER = "02-chat-dataset"
CONVERSATIONS = EXAMPLES / FOLDER / "conversations.jsonl"


def the_job() -> Object:
    (shown,) = of_kind("FineTuneJob", FOLDER)
    spec: Object = shown.object["spec"]
    return spec


def dataset() -> Object:
    """The example's, without its URI: the rows lie elsewhere here."""
    return {name: value for name, value in the_job()["dataset"].items() if name != "uri"}


def rows() -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in CONVERSATIONS.read_text().splitlines()]


def test_every_answer_is_trained_with_its_stop_token_and_nothing_else_is(job: DataJob) -> None:
    job.write_bytes(CONVERSATIONS.read_bytes())
    run = job.run(dataset(), training={"maxLength": the_job()["training"]["maxLength"]})
    shown = preview(run, job.storage, job.tokenizer_folder, 2048, 240)
    assert shown.template == "the model's own"
    assert len(shown.rows) == len(rows()) == 240
    prompt = dataset()["systemPrompt"]
    for row, messages in zip(shown.rows, rows(), strict=True):
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        assert [text for text, trained in row.pieces if trained] == [f"{answer}<|im_end|>" for answer in answers]
        assert "".join(text for text, _ in row.pieces).count(prompt) == 1
        assert row.notes == []


def test_nothing_is_dropped_and_a_tenth_is_held_out(job: DataJob) -> None:
    job.write_bytes(CONVERSATIONS.read_bytes())
    prepared = job.prepare(dataset(), training={"maxLength": the_job()["training"]["maxLength"]})
    kept, held_out = len(prepared.examples()), len(prepared.examples("validation"))
    assert kept + held_out == 240
    assert 12 <= held_out <= 36
