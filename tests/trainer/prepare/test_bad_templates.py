"""Chat templates and tokenizers that cannot be used are answered with what was found, expected and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.prepare.tokenizer import stop_ids
from support.prepared import DataJob, chat, make_tokenizer, template

SECRET = "Zanzibar"
GOOD = chat(f"{SECRET}?", f"{SECRET}!")


@pytest.fixture
def job(small_job: DataJob) -> DataJob:
    """What is tested here does not depend on the tokenizer."""
    return small_job


def test_a_template_that_fails_says_so_for_each_row(job: DataJob) -> None:
    folder = make_tokenizer(
        job.tokenizer_folder, job.folder / "tokenizer", template("gemma"), ("<end_of_turn>",), "<bos>"
    )
    job = DataJob(job.folder, folder)
    bad = {"messages": [{"role": "system", "content": SECRET}, *GOOD["messages"]]}
    job.write([GOOD, bad])
    with pytest.raises(CloisterError) as raised:
        job.prepare()
    message = raised.value.message
    assert SECRET not in message
    assert "line 2: found a conversation on which the chat template fails (System role not supported)" in message
    assert "give another template in model.chatTemplate" in message


def test_a_template_that_quotes_the_row_is_not_quoted(job: DataJob) -> None:
    quoting = "{% for m in messages %}{{ raise_exception('Bad: ' + m.content) }}{% endfor %}"
    job.write([GOOD])
    with pytest.raises(CloisterError) as raised:
        job.prepare(model={"uri": "file:///model", "chatTemplate": {"inline": quoting}})
    assert "the chat template fails (TemplateError)" in raised.value.message
    assert SECRET not in raised.value.message


def test_a_template_that_is_no_jinja(job: DataJob) -> None:
    job.write([GOOD])
    with pytest.raises(CloisterError, match=r"The chat template is not valid Jinja: .* \(line 1 of the template\)"):
        job.prepare(model={"uri": "file:///model", "chatTemplate": {"inline": "{% for m in %}"}})


def test_a_model_folder_without_a_tokenizer(job: DataJob) -> None:
    job.write([GOOD])
    empty = job.folder / "empty"
    empty.mkdir()
    with pytest.raises(CloisterError, match=r"Expected tokenizer\.json and tokenizer_config\.json") as raised:
        DataJob(job.folder, empty).prepare()
    assert raised.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_a_tokenizer_of_another_model(job: DataJob) -> None:
    folder = make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", template("marked"))
    (folder / "config.json").write_text('{"vocab_size": 100}')
    job.write([GOOD])
    with pytest.raises(CloisterError, match="has a vocabulary of 100: the tokenizer is not this model's"):
        DataJob(job.folder, folder).prepare()


MESSAGES = "{% for m in messages %}<|im_start|>{{ m.role }}\nCONTENT{% endfor %}"
ODD_TEMPLATES = {
    "without marks in the row": (
        MESSAGES.replace(
            "CONTENT",
            "{{ m.content }}{% if m.role == 'tool' %}{% generation %}x{% endgeneration %}{% endif %}<|im_end|>\n",
        ),
        "line 1: found no text that the chat template marks as generated, expected the assistant's text marked.",
    ),
    "with marks that end too early": (
        MESSAGES.replace("CONTENT", "{% generation %}{{ m.content }}{% endgeneration %}.<|im_end|>\n"),
        "line 1: found an assistant turn whose {% generation %} mark does not end on the turn's terminator, expected "
        "<|im_end|> at the mark's end or right after it. Correct the template in model.chatTemplate.",
    ),
    "with a terminator in some turns only": (
        MESSAGES.replace("CONTENT", "{{ m.content }}{% if m.content != 'Ho' %}<|im_end|>{% endif %}\n")
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "line 1, message 2: found an assistant turn that the chat template ends with no special token, expected "
        "<|im_end|> or another special token at the turn's end. Give another template in model.chatTemplate.",
    ),
}


@pytest.mark.parametrize("case", ODD_TEMPLATES)
def test_an_odd_template(job: DataJob, case: str) -> None:
    inline, expected = ODD_TEMPLATES[case]
    job.write([chat("Hi", "Ho")])
    with pytest.raises(CloisterError) as raised:
        job.prepare(model={"uri": "file:///model", "chatTemplate": {"inline": inline}})
    assert raised.value.reason is FailureReason.DATASET_INVALID
    assert f"train.jsonl, {expected}" in raised.value.message


def test_a_template_file_that_is_not_utf8(job: DataJob) -> None:
    job.write([chat("Hi", "Ho")])
    (job.folder / "template.jinja").write_bytes("{# ä #}".encode("latin-1"))
    uri = f"file://{job.folder}/template.jinja"
    with pytest.raises(CloisterError, match=r"model.chatTemplate.uri: .* is not UTF-8 text. Convert it.") as raised:
        job.prepare(model={"uri": "file:///model", "chatTemplate": {"uri": uri}})
    assert raised.value.reason is FailureReason.SPEC_INVALID


def test_several_templates_of_which_none_is_the_default(job: DataJob) -> None:
    folder = make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", template("chatml"))
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    for name in ("first", "second"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(template("chatml"))
    job.write([chat("Hi", "Ho")])
    with pytest.raises(CloisterError, match="several chat templates and none is named default") as raised:
        DataJob(job.folder, folder).prepare()
    assert raised.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_a_tokenizer_without_an_end_of_sequence(job: DataJob) -> None:
    folder = job.folder / "tokenizer"
    shutil.copytree(job.tokenizer_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    job.write([{"text": SECRET}])
    with pytest.raises(CloisterError, match="no end-of-sequence token, with which a completion must end") as raised:
        DataJob(job.folder, folder).prepare()
    assert raised.value.reason is FailureReason.MODEL_UNSUPPORTED


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": '{"eos_token_id": [3, 5]}', "config.json": '{"eos_token_id": 7}'}, [3, 5]),
        ({"generation_config.json": "{}", "config.json": '{"eos_token_id": 7}'}, [7]),
        ({"generation_config.json": '{"eos_token_id": ["a", null]}'}, []),
        ({"generation_config.json": "half {", "config.json": "[]"}, []),
        ({}, []),
    ],
)
def test_where_answers_end_is_read_from_the_models_files(
    files: dict[str, str], expected: list[int], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert stop_ids(tmp_path) == expected
