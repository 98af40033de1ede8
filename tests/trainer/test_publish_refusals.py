"""Adapters that must not be published: each refusal names what is wrong, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_trainer.publish.main import publish
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage
from support.publishing import with_merged
from support.staged_run import StagedRun, make_checks, published_folder, stage

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


def refusal(staged: StagedRun, storage: Storage, tmp_path: Path) -> CloisterError:
    """What publish answers, after checking that it published nothing and, before the merged model, wrote nothing."""
    with pytest.raises(CloisterError) as refused:
        publish(staged.run, staged.plan, storage, Reporter.silent(), tmp_path / "scratch")
    if not staged.run.spec.output.merged_model:
        assert storage.list(staged.run.output.folder) == []
    assert not storage.exists(staged.run.output.manifest)
    assert not storage.exists(staged.run.output.pointer)
    assert refused.value.reason is FailureReason.ADAPTER_INVALID
    return refused.value


@dataclass(frozen=True)
class Damage:
    name: str
    do: Callable[[Tensors], object]
    said: str


DAMAGES = [
    Damage("not finite", lambda t: t[B].__setitem__((3, 1), float("nan")), f"{B} holds a value that is not a finite"),
    Damage("infinite", lambda t: t[A].__setitem__((0, 0), float("inf")), f"{A} holds a value that is not a finite"),
    Damage("all B zero", lambda t: [t[n].zero_() for n in t if "lora_B" in n], "every matrix B is zero"),
    Damage("missing tensor", lambda t: t.pop(A), f"lacks {A}"),
    Damage("extra tensor", lambda t: t.update({A.replace("q_proj", "x_proj"): torch.ones(4, 32)}), "x_proj.lora_A"),
    Damage("wrong shape", lambda t: t.update({A: torch.ones(4, 31)}), "tensors of another shape"),
    Damage("wrong rank", lambda t: t.update({A: torch.ones(5, 32)}), "tensors of another shape"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_adapter_is_refused(
    damage: Damage, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    damage.do(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    staged = stage(tmp_path.as_uri(), tiny_llama, folder)
    staged.store(storage)

    assert damage.said in refusal(staged, storage, tmp_path).message


def test_an_adapter_changed_after_training_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    staged.store(storage)
    uri = join(staged.run.layout.adapter, "adapter_model.safetensors")
    data = bytearray(storage.read(uri))
    data[-1] ^= 1
    storage.write(uri, bytes(data))

    message = refusal(staged, storage, tmp_path).message

    assert uri in message
    assert staged.checks.adapter.sha256 in message


def test_a_run_that_has_not_trained_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)

    assert "training has not finished" in refusal(staged, storage, tmp_path).message


@pytest.mark.parametrize(
    ("check", "said"), [("read_back_equal", "differs from the trained one"), ("frozen_unchanged", "frozen weights")]
)
def test_a_failed_check_of_train_is_refused(
    check: str, said: str, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    staged.checks = staged.checks.model_copy(update={check: False})
    staged.store(storage)

    assert said in refusal(staged, storage, tmp_path).message


def test_a_base_model_that_changed_meanwhile_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    staged = stage(tmp_path.as_uri(), model, tiny_adapter)
    staged.store(storage)
    with (model / "tokenizer.json").open("a") as file:
        file.write(" ")

    assert "tokenizer.json has sha256" in refusal(staged, storage, tmp_path).message


def test_an_absolute_path_in_the_configuration_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    config["auto_mapping"] = {"parent_library": "/home/ada/models"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    staged = stage(tmp_path.as_uri(), tiny_llama, folder)
    staged.checks = make_checks(folder)
    staged.store(storage)

    assert "auto_mapping.parent_library" in refusal(staged, storage, tmp_path).message


@pytest.mark.parametrize("damage", [b"\xff" * 100, b"", (2**40).to_bytes(8, "little") + b"{}"])
def test_an_unreadable_adapter_is_refused(
    damage: bytes, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(damage)
    staged = stage(tmp_path.as_uri(), tiny_llama, folder)
    staged.store(storage)

    message = refusal(staged, storage, tmp_path).message

    assert "adapter_model.safetensors is not a readable safetensors file" in message


def test_a_merged_file_that_changed_or_went_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = with_merged(stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, output={"mergedModel": True}), storage)
    uri = join(staged.run.layout.merged, "model.safetensors")
    storage.write(uri, b"changed")

    assert f"{uri} has sha256" in refusal(staged, storage, tmp_path).message
    storage.delete(uri)
    assert f"{uri} is missing, though checks.json names it" in refusal(staged, storage, tmp_path).message


def test_a_damaged_manifest_is_not_published_by_a_retry(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    published_folder(staged, storage, tmp_path / "scratch")
    storage.delete(staged.run.output.pointer)
    storage.write(staged.run.output.manifest, b"{}")

    with pytest.raises(CloisterError, match="is not a manifest of this version") as refused:
        publish(staged.run, staged.plan, storage, Reporter.silent(), tmp_path / "scratch")

    assert refused.value.reason is FailureReason.ADAPTER_INVALID
    assert staged.run.output.manifest in refused.value.message
    assert not storage.exists(staged.run.output.pointer)


@pytest.mark.parametrize("name", ["config.json", "LICENSE"])
def test_a_file_of_the_base_model_that_went_meanwhile_is_refused(
    name: str, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    staged = stage(tmp_path.as_uri(), model, tiny_adapter)
    staged.store(storage)
    (model / name).unlink()

    message = refusal(staged, storage, tmp_path).message

    assert f"{name} was there when the run was prepared and is missing now. Restore the file" in message


def test_a_chat_template_that_changed_or_went_meanwhile_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    model = {"chatTemplate": {"uri": template.as_uri()}}
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, model=model)
    staged.store(storage)
    assert staged.plan.chat_template is not None

    template.write_text("{{ messages }}")
    message = refusal(staged, storage, tmp_path).message
    assert f"{template.as_uri()} has sha256" in message
    assert staged.plan.chat_template.sha256 in message
    template.unlink()
    assert f"{template.as_uri()} was there when" in refusal(staged, storage, tmp_path).message
