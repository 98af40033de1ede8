"""A checkpoint that lacks a weight is refused, before its data are read and again when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Precision
from cloister_trainer.model.complete import check_complete
from cloister_trainer.model.config import read_config
from cloister_trainer.prepare.main import inspect
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.model import load_base
from cloister_trainer.train.targets import tensors_in
from cloister_trainer.workspace import Workspace
from support.tiny_models import LONGEST, SETTINGS, VARIANTS, save_tiny_model
from support.tiny_ranks import run_ranks
from support.tiny_run import make_run

FILE = "model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], Any]


def change_weights(folder: Path, change: Change) -> None:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("model_type", [*SETTINGS, *VARIANTS])
def test_a_whole_checkpoint_of_every_family_passes_and_one_without_any_of_its_tensors_does_not(
    model_type: str, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path, model_type)
    config, tensors = read_config(folder), tensors_in(folder, [FILE])
    check_complete(config, tensors)
    for lost in tensors:
        with pytest.raises(CloisterError) as caught:
            check_complete(config, {name: info for name, info in tensors.items() if name != lost})
        assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_the_first_few_missing_tensors_are_named(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "llama", num_hidden_layers=5)
    tensors = {name: info for name, info in tensors_in(folder, [FILE]).items() if "up_proj" not in name}
    with pytest.raises(CloisterError, match=r"lack model\.layers\.0\.mlp\.up_proj\.weight, .*2.*and 2 more, or "):
        check_complete(read_config(folder), tensors)


def test_a_config_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "llama")
    config = read_config(folder) | {"intermediate_size": 40}
    with pytest.raises(CloisterError, match=r"model\.layers\.0\.mlp\.gate_proj\.weight.*another shape"):
        check_complete(config, tensors_in(folder, [FILE]))


def test_what_transformers_cannot_build_is_refused(tmp_path: Path) -> None:
    config = read_config(save_tiny_model(tmp_path, "llama")) | {"hidden_act": "none of these"}
    with pytest.raises(CloisterError, match="transformers cannot build the llama model") as caught:
        check_complete(config, {})
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


CHANGES: dict[str, tuple[Change, str]] = {
    "no final norm": (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight"),
    "no up_proj": (
        lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
        "model.layers.1.mlp.up_proj.weight",
    ),
    "another shape": (lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}), "model.norm.weight"),
    "transposed": (
        lambda tensors: tensors.update(
            {"model.layers.0.mlp.down_proj.weight": tensors["model.layers.0.mlp.down_proj.weight"].T.contiguous()}
        ),
        "model.layers.0.mlp.down_proj.weight",
    ),
    "no head": (lambda tensors: tensors.pop("lm_head.weight"), "lm_head.weight"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_nothing_is_loaded_at_random(case: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "llama", tie_word_embeddings=False)
    change, name = CHANGES[case]
    change_weights(folder, change)
    with pytest.raises(CloisterError, match=f"lack {name}, or") as caught:
        load_base(folder, Precision.FP32, LONGEST)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_prepare_refuses_it(tmp_path: Path) -> None:
    model = {"uri": (tmp_path / "inputs" / "model").as_uri(), "license": "llama3.1"}
    tiny = make_run(tmp_path, model=model)
    storage, workspace = open_storage(environ={}), Workspace(tmp_path / "work")
    inspect(tiny.run, storage, Reporter.silent(), workspace)
    change_weights(tmp_path / "inputs" / "model", CHANGES["no up_proj"][0])
    with pytest.raises(CloisterError, match=CHANGES["no up_proj"][1]) as caught:
        inspect(tiny.run, storage, Reporter.silent(), workspace)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (3, 2)])
def test_no_rank_trains_on_it(stage: int, ranks: int, tmp_path: Path) -> None:
    make_run(tmp_path)
    change_weights(tmp_path / "inputs" / "model", CHANGES["no up_proj"][0])
    (tmp_path / "inputs" / "model.json").unlink()
    tiny = make_run(tmp_path, workers=ranks, stage=stage)
    with pytest.raises(CloisterError, match=CHANGES["no up_proj"][1]) as caught:
        run_ranks(tiny, ranks).end()
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
