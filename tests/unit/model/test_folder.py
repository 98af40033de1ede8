"""Model folders are accepted as people have them, and ignored files are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from cloister_trainer.model.headers import FIRST_READ_BYTES
from cloister_trainer.reporter import Reporter
from support.model_folders import (
    APACHE,
    HIDDEN,
    LLAMA_31,
    MIT,
    config,
    deepseek_tensors,
    inspected,
    llama_tensors,
    mixtral_tensors,
    phi3_tensors,
    safetensors_bytes,
    write_llama,
    write_model,
)


def test_a_llama_folder_with_original_weights_is_accepted(tmp_path: Path) -> None:
    folder = write_llama(
        tmp_path / "llama", files=3, USE_POLICY__md="Be good.", README__md="---\nlicense: llama3.1\n---"
    )
    (folder / "original").mkdir()
    for name in ("consolidated.00.pth", "params.json", "tokenizer.model"):
        (folder / "original" / name).write_text("x")
    console = Console(width=200)
    with console.capture() as said:
        model = inspected(folder, tmp_path / "scratch", reporter=Reporter(console))
    assert "original/" in said.get()
    assert model.record.ignored_files == ["original/"]
    assert [file.name for file in model.record.weight_files] == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    assert {file.name for file in model.record.small_files} == {
        "LICENSE",
        "README.md",
        "USE_POLICY.md",
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert model.record.license.id == "llama3.1"
    assert model.record.license.files == ["LICENSE", "USE_POLICY.md"]
    assert model.record.position_limit == 512
    assert model.record.base_parameters == sum(info.parameters for info in model.tensors.values())
    assert model.tensors["model.layers.1.self_attn.k_proj.weight"].shape == (HIDDEN // 2, HIDDEN)


def test_mistral_with_consolidated_weights_is_read_from_its_shards_only(tmp_path: Path) -> None:
    fields = config("mistral", "MistralForCausalLM", sliding_window=None)
    folder = write_model(tmp_path / "mistral", fields, llama_tensors(), 2, LICENSE=APACHE, params__json="{}")
    (folder / "consolidated.safetensors").write_bytes(b"not even a header")
    (folder / "tekken.json").write_text("{}")
    model = inspected(folder, tmp_path / "scratch")
    assert model.record.ignored_files == ["consolidated.safetensors", "params.json", "tekken.json"]
    assert len(model.record.weight_files) == 2


@pytest.mark.parametrize("model_type", ["phi3", "deepseek_v3"])
def test_python_files_are_never_fetched(model_type: str, tmp_path: Path) -> None:
    if model_type == "phi3":
        fields = config("phi3", "Phi3ForCausalLM", auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})
        tensors = phi3_tensors()
    else:
        fields = config("deepseek_v3", "DeepseekV3ForCausalLM", n_routed_experts=4, num_key_value_heads=4)
        tensors = deepseek_tensors()
    files = {"configuration_x__py": "exit()", "modeling_x__py": "exit()", "LICENSE": MIT, "sample_finetune__py": ""}
    folder = write_model(tmp_path / "model", fields, tensors, 1, **files)
    model = inspected(folder, tmp_path / "scratch")
    assert model.record.ignored_files == ["configuration_x.py", "modeling_x.py", "sample_finetune.py"]
    assert not list((tmp_path / "scratch").rglob("*.py"))


def test_kimi_k2_is_read_as_deepseek_v3(tmp_path: Path) -> None:
    fields = config("kimi_k2", "DeepseekV3ForCausalLM", n_routed_experts=4, num_key_value_heads=4)
    fields |= {"auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}
    files = {"configuration_deepseek__py": "exit()", "LICENSE": MIT}
    model = inspected(write_model(tmp_path / "kimi", fields, deepseek_tensors(), 1, **files), tmp_path / "scratch")
    assert (model.record.model_type, model.record.architecture) == ("deepseek_v3", "DeepseekV3ForCausalLM")
    assert model.config["model_type"] == "deepseek_v3" and "auto_map" not in model.config
    assert '"kimi_k2"' in (tmp_path / "scratch" / "config.json").read_text()


def test_a_multi_token_prediction_layer_does_not_count(tmp_path: Path) -> None:
    fields = config("deepseek_v3", "DeepseekV3ForCausalLM", n_routed_experts=4, num_key_value_heads=4)
    plain = write_model(tmp_path / "plain", fields, deepseek_tensors(), LICENSE=MIT)
    with_mtp = write_model(tmp_path / "mtp", fields, deepseek_tensors(layers=3), LICENSE=MIT)
    counts = [inspected(folder, tmp_path / folder.stem / "s").record.base_parameters for folder in (plain, with_mtp)]
    assert counts[0] == counts[1]


def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    tensors = llama_tensors() | {f"model.extra.{n:06d}": ("BF16", (1,)) for n in range(5000)}
    folder = write_model(tmp_path / "model", config(), tensors, LICENSE=LLAMA_31)
    assert int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little") > FIRST_READ_BYTES
    assert "model.extra.004999" in inspected(folder, tmp_path / "scratch").tensors


def test_the_fingerprint_follows_weights_config_and_tokenizer_only(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "llama", README__md="---\nlicense: llama3.1\n---")

    def fingerprint() -> str:
        return inspected(folder, tmp_path / "scratch").record.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    (folder / "README.md").write_text("---\nlicense: llama3.1\n---\nMore words.")
    (folder / "generation_config.json").write_text("{}")
    assert fingerprint() == first
    seen = {first}
    for name, change in (
        ("tokenizer.json", '{"version": "1.1"}'),
        ("chat_template.jinja", "{{ messages }}"),
        ("config.json", json.dumps(config(rms_norm_eps=1e-5))),
    ):
        (folder / name).write_text(change)
        seen.add(fingerprint())
    (folder / "model.safetensors").write_bytes(safetensors_bytes(llama_tensors(dtype="F16")))
    seen.add(fingerprint())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] = 1
    (folder / "model.safetensors").write_bytes(bytes(weights))
    seen.add(fingerprint())
    assert len(seen) == 6


def test_mixtral_experts_are_counted_as_stored(tmp_path: Path) -> None:
    fields = config("mixtral", "MixtralForCausalLM", num_local_experts=4)
    folder = write_model(tmp_path / "mixtral", fields, mixtral_tensors())
    model = inspected(folder, tmp_path / "scratch")
    assert model.record.license.evidence == "Family"
    assert model.record.base_parameters == sum(info.parameters for info in model.tensors.values())
