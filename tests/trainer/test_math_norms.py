"""Norms in one kernel compute what transformers' do; whose they are, by their code and by the table of families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from cloister_api.errors import CloisterError
from cloister_api.spec_training import Precision
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.train.layout import collate
from cloister_trainer.train.norms import fuse_norms, fused_norms, stock_norms
from cloister_trainer.train.selftests import check_base_loss
from support.tiny_models import (
    SETTINGS,
    VARIANTS,
    ListExamples,
    gradients,
    save_tiny_model,
    with_adapter,
)

WIDTH = 64
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
CPU = torch.device("cpu")


def a_norm(dtype: torch.dtype, kind: type[nn.Module] = LlamaRMSNorm) -> Any:
    """Frozen, with a weight that is not 1."""
    norm = kind(WIDTH, eps=1e-5)
    generator = torch.Generator().manual_seed(1)
    norm.weight.data = torch.randn(WIDTH, generator=generator)
    return norm.to(dtype).requires_grad_(False)


def an_input(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (3 * torch.randn(1, 50, WIDTH, generator=generator)).to(dtype).requires_grad_()


def output_and_gradient(norm: Any, hidden: Tensor, *, recompute: bool = False) -> tuple[Tensor, Tensor]:
    output = checkpoint(norm, hidden, use_reentrant=False) if recompute else norm(hidden)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output.dtype)
    (gradient,) = torch.autograd.grad(output, hidden, upstream)
    return output.detach(), gradient


def assert_close(found: Tensor, expected: Tensor) -> None:
    """The same type, and everywhere nearly the same number, as a share of the largest."""
    assert found.dtype is expected.dtype
    difference = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    assert difference <= TOLERANCES[expected.dtype]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Olmo2RMSNorm])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_fused_norm_and_its_gradient_are_those_of_transformers(
    dtype: torch.dtype, recompute: bool, autocast: bool, kind: type[nn.Module]
) -> None:
    norm, hidden = a_norm(dtype, kind), an_input(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = output_and_gradient(norm, hidden)
        fuse_norms(norm)
        found = output_and_gradient(norm, hidden, recompute=recompute)
    for ours, stock in zip(found, expected, strict=True):
        assert_close(ours, stock)


def test_autocast_does_not_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """rms_norm is among what autocast runs in float32."""
    seen = []

    def seen_rms_norm(hidden: Tensor, *_: Any) -> Tensor:
        seen.append((hidden.dtype, torch.is_autocast_enabled("cpu")))
        return hidden

    norm = a_norm(torch.bfloat16)
    fuse_norms(norm)
    monkeypatch.setattr(nn.functional, "rms_norm", seen_rms_norm)
    with torch.autocast("cpu", torch.bfloat16):
        norm(an_input(torch.bfloat16))
    assert seen == [(torch.bfloat16, False)]


def test_hooks_around_a_fused_norm_run_and_its_weight_is_read_then() -> None:
    """ZeRO stage 3 gathers a weight in a hook before the forward pass, and frees it in one after it."""
    norm, hidden = a_norm(torch.float32), an_input(torch.float32)
    expected = norm(hidden)
    whole, empty = norm.weight.data, torch.empty(0)
    fuse_norms(norm)
    norm.weight.data = empty
    norm.register_forward_pre_hook(lambda module, _: setattr(module.weight, "data", whole))
    norm.register_forward_hook(lambda module, *_: setattr(module.weight, "data", empty))
    assert_close(norm(hidden).detach(), expected.detach())
    assert norm.weight.numel() == 0


@pytest.mark.parametrize("kind", [GemmaRMSNorm, nn.LayerNorm])
def test_a_norm_that_computes_something_else_stays(kind: type[nn.Module]) -> None:
    model = nn.ModuleDict({"own": kind(WIDTH, eps=1e-5), "copied": Qwen3RMSNorm(WIDTH)})
    fuse_norms(model)
    assert fused_norms(model).keys() == {"copied"}


@pytest.mark.parametrize("model_type", [*SETTINGS, *VARIANTS])
def test_the_table_of_families_knows_whose_norms_are_fused(model_type: str, tmp_path: Path) -> None:
    """All that the memory plan counts as norms of a family, or none."""
    model = with_adapter(save_tiny_model(tmp_path, model_type)).base
    fuse_norms(model)
    counted = {
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if parameter.dim() == 1 and name.endswith("norm.weight")
    }
    family = FAMILIES[model.config.model_type]
    assert fused_norms(model).keys() == (counted if family.fused_norms else set())


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "deepseek_v3", "olmo2"])
def test_a_model_with_fused_norms_trains_alike(model_type: str, tmp_path: Path) -> None:
    module = with_adapter(save_tiny_model(tmp_path, model_type), random_b=True)
    module.set_gradient_checkpointing(True)
    micro_batch = collate(ListExamples([30, 12]), (0, 1), "cpu")
    fuse_norms(module)

    def loss_and_gradients() -> dict[str, Tensor]:
        loss = module(micro_batch)
        loss.backward()
        return {"loss": loss.detach(), **gradients(module)}

    fused = loss_and_gradients()
    with stock_norms(module):
        assert not fused_norms(module)
        stock = loss_and_gradients()
    assert fused_norms(module)
    for name, expected in stock.items():
        difference = float((fused[name] - expected).abs().max() / expected.abs().max())
        assert difference <= 1e-4, name


@pytest.mark.parametrize("precision", list(Precision))
def test_the_first_loss_is_compared_with_stock_norms(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = with_adapter(save_tiny_model(tmp_path, "llama"), precision=precision)
    fuse_norms(module)
    assert check_base_loss(module, ListExamples([40]), CPU, new_adapter=True)
    rms_norm = nn.functional.rms_norm
    monkeypatch.setattr(nn.functional, "rms_norm", lambda *arguments: 1.5 * rms_norm(*arguments))
    with pytest.raises(CloisterError, match="Self-test base loss: transformers finds"):
        check_base_loss(module, ListExamples([40]), CPU, new_adapter=True)


def test_on_cpus_a_model_stays_as_transformers_made_it(tmp_path: Path) -> None:
    assert not fused_norms(with_adapter(save_tiny_model(tmp_path, "llama")))
