"""On a GPU: runs against the plain truth, stopped and started again, and over a base in 4 bits (docs/exactness.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from cloister_api.events import Progress
from cloister_api.spec_training import Precision, Quantization
from cloister_trainer.train.attention import stock_attention
from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import save_adapter
from cloister_trainer.train.messages import Ended
from cloister_trainer.train.model import load_base
from cloister_trainer.train.norms import fuse_norms, fused_norms, stock_norms
from support.frozen_base import assert_frozen
from support.plain_loop import PlainLoop, Trained, save_start
from support.qlora import check_multiplies_by_its_meaning, qlora, quantised_modules, save_wide_model, stock_base
from support.random_llama import SMALL, make_long_tokens, make_random_llama
from support.tiny_inputs import make_tokenizer, record_of
from support.tiny_models import ListExamples, adapter_state, save_tiny_model, stock_layers, with_adapter
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

STEPS = 12
CURVE, CURVE_MEAN = 1e-2, 2.5e-3
"""In bfloat16, against the plain truth (docs/exactness.md)."""


def run_of(root: Path, inputs: Path, stage: int, *, lora: dict[str, Any] | None = None, **training: Any) -> TinyRun:
    """Packed or not by `training`: on GPUs a start makes its own plan of the job."""
    full = {"globalBatchSize": 7, "maxGradNorm": 0.25, "precision": "BF16", "microBatchTokens": 64, **training}
    return make_run(
        root,
        inputs=inputs,
        steps=STEPS,
        train=23,
        training=full,
        lora=lora or {"rank": 4, "alpha": 8},
        distribution={"workers": 1, "gpusPerWorker": 1, "zeroStage": stage},
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def truth(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What one process trains with one padded batch a step, without DeepSpeed, on the same GPU."""
    root = tmp_path_factory.mktemp("truth")
    tiny = run_of(root, inputs, 0)
    return PlainLoop(tiny, save_start(tiny, root / "start", random_b=False), "cuda").train()


@pytest.mark.parametrize("packing", ["Auto", "Never"])
@pytest.mark.parametrize("stage", range(4))
def test_in_bf16_the_curve_is_the_plain_one_but_for_rounding(
    stage: int, packing: str, truth: Trained, inputs: Path, tmp_path: Path
) -> None:
    tiny = run_of(tmp_path, inputs, stage, packing=packing)
    assert run_ranks(tiny, as_if_large=stage == 3, device="cuda").end() == Ended("finished", STEPS)
    losses = [row["loss"] for row in tiny.metrics()]
    differences = [abs(loss - plain) for loss, plain in zip(losses, truth.losses, strict=True)]
    assert max(differences) <= CURVE
    assert sum(differences) / STEPS <= CURVE_MEAN


def small_run(root: Path, stage: int) -> TinyRun:
    """A model that fills many blocks of a kernel, examples of 1,000 tokens packed by four, dropout, deterministic."""
    record = make_random_llama(root.parent / "small", SMALL)
    tokens = root.parent / "tokens"
    index = make_long_tokens(tokens, 64, 1000, SMALL["vocab_size"])
    tiny = make_run(
        root,
        steps=STEPS,
        lora={"rank": 8, "alpha": 16, "dropout": 0.1},
        training={"precision": "BF16", "deterministic": True, "microBatchTokens": 4000},
        distribution={"workers": 1, "gpusPerWorker": 1, "zeroStage": stage},
    )
    spec = tiny.run.spec.model_copy(update={"model": tiny.run.spec.model.model_copy(update={"uri": record.uri})})
    plan = tiny.plan.model_copy(update={"model": record, "tokens_uri": tokens.as_uri(), "data": index})
    return TinyRun(root, tiny.run.model_copy(update={"spec": spec}), plan)


@pytest.mark.parametrize("stage", range(4))
def test_stopped_and_started_again_a_deterministic_run_ends_with_the_same_bits(stage: int, tmp_path: Path) -> None:
    whole, stopped = small_run(tmp_path / "whole", stage), small_run(tmp_path / "stopped", stage)
    assert_same_bits_after_a_stop(whole, stopped)


def test_over_a_base_in_4_bits_too(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    model = save_wide_model(inputs / "model", "llama", torch.bfloat16)
    make_tokenizer().save_pretrained(model)
    (inputs / "model.json").write_text(record_of(model).model_dump_json())
    lora = {"rank": 4, "alpha": 8, "quantization": "NF4"}
    runs = [run_of(tmp_path / name, inputs, 2, lora=lora, deterministic=True) for name in ("whole", "stopped")]
    assert_same_bits_after_a_stop(*runs)
    losses = [row["loss"] for row in runs[0].metrics()]
    assert losses[-1] < 0.7 * losses[0]
    assert_frozen(runs[0].checks(), model, in_4_bits=len(runs[0].plan.plan.target_modules))


def assert_same_bits_after_a_stop(whole: TinyRun, stopped: TinyRun) -> None:
    def stop_at_five(message: Any, act: Any) -> None:
        if isinstance(message, Progress) and message.step == 5:
            act("stop")

    assert run_ranks(whole, device="cuda").end() == Ended("finished", STEPS)
    end = run_ranks(stopped, 1, stop_at_five, device="cuda").end()
    assert end.how == "interrupted" and end.step < STEPS
    assert run_ranks(stopped, attempt=2, device="cuda").end() == Ended("finished", STEPS)
    assert stopped.adapter() == whole.adapter()
    assert [row["loss"] for row in stopped.metrics()] == [row["loss"] for row in whole.metrics()]


@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 1e-5), (Precision.BF16, 2e-2)])
def test_a_layer_in_4_bits_multiplies_by_what_its_bits_stand_for(
    precision: Precision, tolerance: float, tmp_path: Path
) -> None:
    model = load_base(save_wide_model(tmp_path, "llama"), precision, 100, Quantization.NF4, torch.device("cuda"))
    for layer in quantised_modules(model).values():
        check_multiplies_by_its_meaning(layer, tolerance, "cuda")


def test_stock_peft_over_the_base_as_the_card_loads_it_answers_alike(tmp_path: Path) -> None:
    from peft import PeftModel

    base = save_wide_model(tmp_path / "base", "llama", torch.bfloat16)
    module = with_adapter(base, qlora(), Precision.BF16, random_b=True, device=torch.device("cuda"))
    examples = ListExamples([30, 12])
    module(collate(examples, (0,), "cuda")).backward()
    save_adapter(module.model, adapter_state(module.model), tmp_path / "adapter", "s3://models/base")
    ids = torch.arange(3, 43, device="cuda")[None]
    with (
        torch.no_grad(),
        module.evaluating(),
        stock_attention(module.base),
        stock_norms(module.base),
        stock_layers(module.model),
    ):
        attention = module.base.config._attn_implementation
        trained = module.model(input_ids=ids, use_cache=False).logits
    stock = stock_base(base, torch.bfloat16, attention, "cuda")
    with torch.no_grad():
        reloaded = PeftModel.from_pretrained(stock, tmp_path / "adapter").eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(trained, reloaded, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Olmo2RMSNorm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_norm_keeps_its_input_as_it_came_and_has_transformers_gradient(
    dtype: torch.dtype, tolerance: float, kind: Any
) -> None:
    norm = kind(4096).to("cuda", dtype).requires_grad_(False)
    norm.weight.data.normal_()
    hidden = torch.randn(1, 50, 4096, dtype=dtype, device="cuda", requires_grad=True)
    upstream = torch.randn_like(hidden)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autocast("cuda", torch.bfloat16):
        stock = norm(hidden)
        fuse_norms(norm)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            fused = norm(hidden)
    large = [tensor for tensor in saved if tensor.numel() >= hidden.numel()]
    assert [(tensor.dtype, tensor.data_ptr()) for tensor in large] == [(dtype, hidden.data_ptr())]
    pairs = (fused, stock), (torch.autograd.grad(each, hidden, upstream)[0] for each in (fused, stock))
    for ours, expected in pairs:
        assert ours.dtype is expected.dtype is dtype
        assert float((ours - expected).abs().max() / expected.abs().max()) <= tolerance


def test_a_model_loaded_for_a_gpu_has_its_norms_in_one_kernel(tmp_path: Path) -> None:
    module = with_adapter(save_tiny_model(tmp_path, "llama"), precision=Precision.BF16, device=torch.device("cuda"))
    assert len(fused_norms(module)) == 2 * module.base.config.num_hidden_layers + 1
