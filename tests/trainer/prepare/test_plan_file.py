"""plan.json: what prepare leaves for train and publish, and keeps out because the file stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import torch

from cloister_api.run import Run
from cloister_trainer.prepare.main import prepare, require_plan
from cloister_trainer.records import PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.answers import sample_rows
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.messages import Sink
from cloister_trainer.workspace import Workspace
from support.staged_run import UID, digest

WORD = "w60"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


def prepared(root: Path, model_folder: Path, **spec: Any) -> tuple[Run, PlanFile]:
    """A run on a few rows, prepared; its plan as train and publish read it."""
    rows = [{"prompt": f"w{number} w{number + 1}", "completion": WORD} for number in range(40)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    full: dict[str, Any] = {
        "model": {"uri": model_folder.as_uri(), "license": "apache-2.0"},
        "dataset": {"uri": (root / "rows.jsonl").as_uri(), "validation": {"fraction": 0.2}},
        "output": {"uri": (root / "out").as_uri()},
        "lora": {"rank": 4},
        "distribution": {"gpusPerWorker": 0},
    }
    for name, value in spec.items():
        full[name] = {**full.get(name, {}), **value}
    run = Run.model_validate({"uid": UID, "namespace": "local", "name": "test", "spec": full})
    storage = open_storage(environ={})
    prepare(run, storage, Reporter.silent(), Workspace(root / "scratch"), None)
    return run, require_plan(run, storage)


def test_rows_to_be_answered_lie_beside_the_tokens_only(tmp_path: Path, tiny_llama: Path) -> None:
    storage = open_storage(environ={})
    run, plan = prepared(tmp_path, tiny_llama, evaluation={"samples": 2})
    context = WorkerContext(
        run=run,
        plan=plan,
        attempt=1,
        rank=0,
        world_size=1,
        node="here",
        device=torch.device("cpu"),
        storage=storage,
        sink=create_autospec(Sink),
        scratch=tmp_path,
        models=tmp_path,
    )

    assert [row.answer for row in sample_rows(context)] == [WORD, WORD]
    storage.delete_prefix(plan.tokens_uri)
    for file in storage.list(run.layout.root):
        assert WORD not in storage.read(file.uri).decode(), file.name
    assert plan.data.samples == []
    assert plan.chat_template is None
    assert plan.data.validation_examples > 0


def test_the_jobs_chat_template_is_remembered_by_its_digest(tmp_path: Path, tiny_llama: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)

    _, plan = prepared(tmp_path, tiny_llama, model={"chatTemplate": {"uri": template.as_uri()}})

    assert plan.chat_template == digest(template, "chat_template.jinja")
