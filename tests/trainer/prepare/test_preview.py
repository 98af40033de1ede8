"""The preview shows rows as prepare stores them."""

from __future__ import annotations

import pytest

from cloister_api.errors import CloisterError
from cloister_trainer.prepare.preview import preview
from support.prepared import DataJob, chat, template


def test_pieces_are_the_stored_example(job: DataJob) -> None:
    job.write([chat("Hi", "Hello", "And?", "Bye"), chat("a", "b"), chat("c", "d")])
    shown = preview(job.run(), job.storage, job.tokenizer_folder, 2048, 2)
    assert len(shown.rows) == 2
    assert shown.format == "Messages (messages)"
    assert shown.template == "the model's own"
    assert shown.stop_token == "<|im_end|>"
    row, stored = shown.rows[0], job.prepare().examples()[0]
    assert (row.tokens, row.trained) == (stored.tokens, stored.trained)
    assert [piece for piece, trained in row.pieces if trained] == ["Hello<|im_end|>", "Bye<|im_end|>"]
    assert "".join(piece for piece, _ in row.pieces) == job.tokenizer().decode(stored.tokens)
    assert row.notes == []


def test_what_befell_a_row_is_noted(job: DataJob) -> None:
    job.write([chat("Hi", "<think>\na\n</think>\n\nHello", "And?", "Bye " * 50)])
    model = {"uri": "file:///model", "chatTemplate": {"inline": template("qwen3")}}
    shown = preview(job.run(model=model, training={"maxLength": 32}), job.storage, job.tokenizer_folder, 2048, 5)
    assert len(shown.rows) == 2
    assert shown.rows[0].notes == [
        "Cut to training.maxLength.",
        "The chat template rewrites earlier turns: the row becomes several examples.",
    ]
    assert shown.template == "model.chatTemplate"


def test_plain_text_has_no_template(job: DataJob) -> None:
    job.write([{"prompt": "Answer: ", "completion": "yes"}])
    shown = preview(job.run(), job.storage, job.tokenizer_folder, 2048, 5)
    assert shown.template == "none; the rows are plain text"
    assert shown.stop_token == "<|im_end|>"
    assert shown.rows[0].notes == ["A token reaches over the border between prompt and completion."]


def test_nothing_is_written_and_bad_rows_are_told(job: DataJob) -> None:
    job.write([chat("Hi", "Hello"), {"messages": []}])
    with pytest.raises(CloisterError, match=r"line 2, messages: found an empty list"):
        preview(job.run(), job.storage, job.tokenizer_folder, 2048, 5)
    assert not (job.folder / "out").exists()
