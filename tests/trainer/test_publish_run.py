"""What publish writes: one immutable folder that stock PEFT loads, and one pointer to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig

from cloister_api.layout import join
from cloister_trainer.publish.main import publish
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage
from support.staged_run import LICENSE_TEXT, digest, make_adapter, make_model, manifest_of, published_folder, stage

FILES = [
    "LICENSE",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "checks.json",
    "loss.svg",
    "manifest.json",
    "metrics.jsonl",
    "report.html",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.eval()(torch.arange(3, 30)[None]).logits
    return output


def test_the_folder_holds_what_the_manifest_names_and_the_pointer_names_the_manifest(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)

    folder = published_folder(staged, storage, tmp_path / "scratch")

    assert sorted(path.name for path in folder.iterdir()) == FILES
    manifest = manifest_of(folder)
    named = {file["name"]: file for file in manifest["files"]}
    assert sorted([*named, "manifest.json"]) == FILES
    for name, file in named.items():
        assert file == digest(folder / name).to_api()
    pointer = json.loads((folder.parent / "current.json").read_text())
    assert pointer == {
        "version": 1,
        "uid": staged.run.uid,
        "folder": staged.run.uid,
        "manifestDigest": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest(),
    }
    assert (folder / "LICENSE").read_bytes() == LICENSE_TEXT


def test_the_manifest_says_where_everything_came_from(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, training={"seed": 7})

    manifest = manifest_of(published_folder(staged, storage, tmp_path / "scratch"))

    assert manifest["baseModel"]["digest"] == staged.checks.base_digest
    assert manifest["baseModel"]["license"]["id"] == "apache-2.0"
    assert manifest["dataset"]["digest"] == staged.plan.data.digest
    assert manifest["provenance"] == {"requestedBy": "Ada Lovelace", "ticket": "LEGAL-17"}
    assert manifest["spec"] == staged.run.spec.to_api()
    assert manifest["seed"] == 7
    assert manifest["checks"]["relativeImprovement"] == pytest.approx(0.5)
    assert manifest["times"]["firstStep"] < manifest["times"]["lastStep"] < manifest["times"]["published"]
    assert manifest["egress"]["summary"].startswith("Not proven")
    assert "Dock 4" not in json.dumps(manifest), "rows of the dataset have no place in the manifest"


def test_the_plan_is_the_one_that_train_followed(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    plan = staged.plan.plan.model_copy(update={"micro_batch_tokens": 7331, "gpu_memory": []})
    staged.checks = staged.checks.model_copy(update={"plan": plan})

    folder = published_folder(staged, storage, tmp_path / "scratch")

    assert manifest_of(folder)["plan"] == plan.to_api()
    assert "7,331 tokens" in (folder / "report.html").read_text()


def test_stock_peft_loads_the_published_adapter_with_the_same_logits(
    tmp_path: Path, tiny_llama: Path, storage: Storage
) -> None:
    live = make_adapter(tiny_llama, tmp_path / "adapter")
    staged = stage(tmp_path.as_uri(), tiny_llama, tmp_path / "adapter")

    folder = published_folder(staged, storage, tmp_path / "scratch")

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, str(folder))
    assert torch.equal(logits(loaded), logits(live))
    assert not torch.allclose(logits(loaded), before), "the adapter must change something for this to mean anything"
    assert AutoTokenizer.from_pretrained(folder)("w5 w6")["input_ids"] == [8, 9]


def test_adapters_of_fused_experts_are_checked_and_load(tmp_path: Path, storage: Storage) -> None:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = make_model(tmp_path / "tiny-mixtral", config)
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    live = make_adapter(
        model, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], target_parameters=experts, lora_dropout=0.0
    )
    staged = stage(tmp_path.as_uri(), model, tmp_path / "adapter")

    folder = published_folder(staged, storage, tmp_path / "scratch")

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(folder))
    assert torch.equal(logits(loaded), logits(live))
    assert manifest_of(folder)["adapter"]["tensors"] == 2 * (2 * 2 + 2 * 2)


def test_no_file_knows_a_path_of_this_machine_but_the_uris_of_the_job(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage((tmp_path / "store").as_uri(), tiny_llama, tiny_adapter)

    folder = published_folder(staged, storage, tmp_path / "scratch")

    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-llama"
    for path in folder.iterdir():
        text = path.read_bytes().decode(errors="replace")
        for uri in (tiny_llama.as_uri(), (tmp_path / "store").as_uri()):
            text = text.replace(uri, "")
        for here in (tmp_path, tiny_adapter, tiny_llama, Path.cwd(), Path.home()):
            assert f"{here}/" not in text, f"{path.name} names {here}"


def test_tokens_and_checkpoints_are_deleted_and_that_is_recorded(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)

    folder = published_folder(staged, storage, tmp_path / "scratch")

    layout = staged.run.layout
    assert storage.list(layout.tokens) == storage.list(layout.checkpoints) == []
    assert storage.exists(layout.plan_file)
    assert storage.exists(layout.checks_file)
    record = json.loads(storage.read(join(layout.root, "deleted.json")))
    assert record["deleted"] == [layout.tokens, layout.checkpoints]
    assert [deletion["when"] for deletion in manifest_of(folder)["deletions"]] == ["AfterPublication"] * 2
    assert list((tmp_path / "scratch").iterdir()) == []


def test_keep_run_always_and_tokens_of_others_stay(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    keeping = stage((tmp_path / "a").as_uri(), tiny_llama, tiny_adapter, output={"keepRun": "Always"})
    published_folder(keeping, storage, tmp_path / "scratch")
    assert len(storage.list(keeping.run.layout.tokens)) == 2
    assert len(storage.list(keeping.run.layout.checkpoints)) == 1

    sharing = stage((tmp_path / "b").as_uri(), tiny_llama, tiny_adapter)
    cache = (tmp_path / "cache" / "0123").as_uri()
    storage.write(join(cache, "index.json"), b"{}")
    sharing.plan = sharing.plan.model_copy(update={"tokens_uri": cache})
    published_folder(sharing, storage, tmp_path / "scratch")
    assert storage.exists(join(cache, "index.json"))
    assert storage.list(sharing.run.layout.checkpoints) == []


def test_publishing_again_rewrites_nothing(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    folder = published_folder(staged, storage, tmp_path / "scratch")
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*") if path.is_file()}

    status = publish(staged.run, staged.plan, storage, Reporter(), tmp_path / "scratch").output

    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*") if path.is_file()} == before
    assert status.uri == folder.as_uri()
    assert status.adapter_digest == staged.checks.adapter.sha256
    assert status.size_bytes == sum(path.stat().st_size for path in folder.rglob("*"))


def test_a_merged_model_is_copied_and_named(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, output={"mergedModel": True})
    merged = [digest(tiny_llama / name) for name in ("config.json", "model.safetensors")]
    staged.checks = staged.checks.model_copy(update={"merged_files": merged})
    for file in merged:
        storage.upload(tiny_llama / file.name, join(staged.run.layout.merged, file.name))

    folder = published_folder(staged, storage, tmp_path / "scratch")

    assert (folder / "merged/model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()
    assert {"merged/config.json", "merged/model.safetensors"} <= {f["name"] for f in manifest_of(folder)["files"]}
    assert storage.list(staged.run.layout.merged) == []
    AutoModelForCausalLM.from_pretrained(folder / "merged")
