"""Every family: a tiny random model learns one batch, and its adapter reloads in stock PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.config import position_switch, read_config
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.prepare.tokenizer import load_tokenizer
from cloister_trainer.publish.adapter_checks import check_adapter
from cloister_trainer.steps import prepare_step
from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import save_adapter
from cloister_trainer.train.selftests import (
    check_base_loss,
    check_frozen,
    check_isolation,
    check_moved,
    frozen_checksums,
)
from support.family_job import job_context
from support.learning import assert_it_reloads, train
from support.tiny_inputs import make_tokenizer
from support.tiny_models import (
    SETTINGS,
    VARIANTS,
    ListExamples,
    adapter_state,
    all_with_experts,
    attending_by,
    save_tiny_model,
    with_adapter,
)

CPU = torch.device("cpu")
PACKABLE = [name for name in SETTINGS if FAMILIES[name].packing]
UNPACKABLE = [name for name in SETTINGS if not FAMILIES[name].packing]
MIXTURES = [name for name in PACKABLE if FAMILIES[name].experts is not None]


def test_every_family_has_a_tiny_model() -> None:
    assert SETTINGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("model_type", [*PACKABLE, *VARIANTS])
def test_a_family_overfits_one_packed_batch(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base)
    assert check_isolation(module, CPU)
    assert_it_learns(module, base, ListExamples([30, 12, 25]), tmp_path / "adapter")


@pytest.mark.parametrize("model_type", UNPACKABLE)
def test_a_family_that_cannot_be_packed_trains_one_example_at_a_time(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base)
    with pytest.raises(CloisterError, match=r"isolation: .* changes another's hidden states"):
        check_isolation(module, CPU)
    assert_it_learns(module, base, ListExamples([30]), tmp_path / "adapter")


@pytest.mark.parametrize("model_type", UNPACKABLE)
def test_prepare_refuses_to_pack_a_family_that_cannot_be_packed(model_type: str, tmp_path: Path) -> None:
    context = job_context(tmp_path, model_type, {"gpusPerWorker": 0}, training={"packing": "Always"})
    with pytest.raises(CloisterError, match=r"packing is Always, but .* mixes packed examples") as refused:
        prepare_step(context)
    assert refused.value.reason is FailureReason.SPEC_INVALID


def assert_it_learns(module: Any, base: Path, examples: ListExamples, folder: Path) -> None:
    """The adapter moves, all else (routers among it) keeps its bits, the loss falls, and stock PEFT sees the same."""
    assert check_base_loss(module, examples, CPU, new_adapter=True)
    start, frozen = adapter_state(module.model), frozen_checksums(module)
    losses = train(module, examples, steps=25)
    check_moved(start, adapter_state(module.model))
    check_frozen(frozen, frozen_checksums(module))
    assert losses[-1] < 0.7 * losses[0]
    routers = FAMILIES[module.base.config.model_type].routers
    assert not [name for name in start if any(f".{router}." in name for router in routers)]
    assert_it_reloads(module, base, folder)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_routed_experts_train_when_asked_for(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base, all_with_experts())
    start = adapter_state(module.model)
    losses = train(module, ListExamples([30, 12, 25]), steps=4)
    check_moved(start, adapter_state(module.model))
    assert losses[-1] < losses[0]
    assert any(".experts." in name for name in start)
    assert_it_reloads(module, base, tmp_path / "adapter")


@pytest.mark.parametrize("model_type", [*SETTINGS, *VARIANTS])
@pytest.mark.parametrize("own", ["eager", "sdpa"])
def test_packed_examples_see_what_transformers_own_attention_shows_each_alone(
    own: str, model_type: str, tmp_path: Path
) -> None:
    module = with_adapter(save_tiny_model(tmp_path, model_type), random_b=True)
    if own == "sdpa" and not module.base._supports_sdpa:
        own = "eager"
    lengths = [30, 12, 25] if FAMILIES[module.base.config.model_type].packing else [30]
    micro_batch = collate(ListExamples(lengths), tuple(range(len(lengths))), "cpu")
    with torch.no_grad(), module.evaluating():
        packed = module.hidden_states(micro_batch).split(lengths)
        for ids, hidden in zip(micro_batch.input_ids.split(lengths, dim=1), packed, strict=True):
            with attending_by(module.base, own):
                alone = module.base.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["Phi-4-mini", "Phi-3.5-MoE"])
def test_longrope_lets_one_long_example_change_the_others_of_its_row(variant: str, tmp_path: Path) -> None:
    """The tiny forms take what is for long rows above 128 tokens; such rows are not packed."""
    base = save_tiny_model(tmp_path, variant)
    switch = position_switch(read_config(base))
    assert switch == 128
    module = with_adapter(base, random_b=True)
    with torch.no_grad(), module.evaluating():
        alone = module.hidden_states(collate(ListExamples([20]), (0,), "cpu"))
        beside = {
            length: module.hidden_states(collate(ListExamples([20, length]), (0, 1), "cpu"))[:20]
            for length in (switch, switch + 1)
        }
    torch.testing.assert_close(beside[switch], alone)
    assert float((beside[switch + 1] - alone).abs().max()) > 1e-3


def test_kimi_k2_is_loaded_as_the_architecture_that_it_is(tmp_path: Path) -> None:
    """Its config.json has a model_type of its own, and names code of its repository, which is never run."""
    base = save_tiny_model(tmp_path / "base", "deepseek_v3")
    path = base / "config.json"
    own = {"model_type": "kimi_k2", "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}
    plain = adapter_and_loss(base)
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    make_tokenizer().save_pretrained(base)
    assert adapter_and_loss(base) == plain
    assert load_tokenizer(base, None).encode("w3 w4") == [3, 4]
    module = with_adapter(base, random_b=True)
    save_adapter(module.model, adapter_state(module.model), tmp_path / "adapter", str(base))
    assert check_adapter(tmp_path / "adapter", base).tensors == len(plain[1])


def adapter_and_loss(base: Path) -> tuple[str, list[str], float]:
    module = with_adapter(base, random_b=True)
    loss = module(collate(ListExamples([30, 12]), (0, 1), "cpu"))
    return type(module.base).__name__, list(adapter_state(module.model)), float(loss.detach())
