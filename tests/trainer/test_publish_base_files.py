"""What travels with the adapter from the base model's folder, and the job's own chat template."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cloister_trainer.storage import Storage, open_storage
from support.staged_run import published_folder, stage


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


def test_the_chat_template_of_the_job_travels_with_the_adapter(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    staged = stage(
        tmp_path.as_uri(),
        tiny_llama,
        tiny_adapter,
        model={"uri": tiny_llama.as_uri(), "chatTemplate": {"inline": template}},
    )

    folder = published_folder(staged, storage, tmp_path / "scratch")

    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "w5"}], tokenize=False
    )
    assert rendered == "<user>w5"


def test_a_model_card_that_proves_the_licence_is_kept_under_another_name(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    finding = staged.plan.model.license.model_copy(update={"evidence": "ModelCard", "file": "README.md"})
    model = staged.plan.model.model_copy(update={"license": finding})
    staged.plan = staged.plan.model_copy(update={"model": model})

    folder = published_folder(staged, storage, tmp_path / "scratch")

    assert (folder / "BASE_MODEL_README.md").read_bytes() == (tiny_llama / "README.md").read_bytes()
    assert "# contracts" in (folder / "README.md").read_text()


@pytest.mark.parametrize("given", [False, True])
def test_the_models_other_templates_travel_only_without_one_of_the_job(
    given: bool, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tool_use.jinja").write_text("the model's own for tools")
    (model / "chat_template.json").write_text('{"chat_template": "an older one"}')
    template = tmp_path / "chat.jinja"
    template.write_text("the job's")
    spec = {"uri": model.as_uri(), **({"chatTemplate": {"uri": template.as_uri()}} if given else {})}
    staged = stage(tmp_path.as_uri(), model, tiny_adapter, model=spec)

    folder = published_folder(staged, storage, tmp_path / "scratch")

    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*template*"))
    own = ["additional_chat_templates", "chat_template.jinja", "chat_template.json"]
    assert found == (["chat_template.jinja"] if given else own)
    published = (folder / "chat_template.jinja").read_text()
    assert published == ("the job's" if given else (model / "chat_template.jinja").read_text())
