"""QLoRA: an adapter over a base whose layers bitsandbytes holds in 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes.functional
import pytest
import torch

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Precision, Quantization
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.train.attention import stock_attention
from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import save_adapter
from cloister_trainer.train.model import load_base
from cloister_trainer.train.nf4 import check_reading, scales
from cloister_trainer.train.selftests import check_base_loss, check_frozen, check_isolation, frozen_checksums
from support.qlora import (
    check_multiplies_by_its_meaning,
    meaning,
    qlora,
    quantised_modules,
    save_wide_model,
    stock_base,
)
from support.tiny_models import SETTINGS, ListExamples, adapter_state, gradients, stock_layers, with_adapter

CPU = torch.device("cpu")
DENSE = [name for name in SETTINGS if FAMILIES[name].experts is None]


@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 1e-5), (Precision.BF16, 2e-2)])
def test_a_layer_multiplies_by_what_its_four_bits_stand_for(
    precision: Precision, tolerance: float, tmp_path: Path
) -> None:
    base = save_wide_model(tmp_path, "phi")
    model = load_base(base, precision, 100, Quantization.NF4)
    original = load_base(base, precision, 100)
    found = quantised_modules(model)
    assert len(found) == 2 * 6
    for name, layer in found.items():
        meant, own = meaning(layer.weight), original.get_submodule(name).weight.float()
        assert 0.05 < float((meant - own).norm() / own.norm()) < 0.12
        check_multiplies_by_its_meaning(layer, tolerance)


def test_it_trains_as_plain_lora_over_those_weights_also_after_the_checks(tmp_path: Path) -> None:
    """Loss and gradients in every layer; on some CPUs bitsandbytes would repack what a forward pass without gradients
    has used, and multiply from then on without a backward pass."""
    base = save_wide_model(tmp_path, "llama")
    module, plain = (with_adapter(base, lora, random_b=True) for lora in (qlora(), None))
    for name, layer in quantised_modules(module.base).items():
        plain.base.get_submodule(name).weight.data = meaning(layer.weight)
    examples = ListExamples([30, 12, 25])
    frozen = frozen_checksums(module)
    check_isolation(module, CPU)
    check_base_loss(module, examples, CPU, new_adapter=False)
    assert "unchanged" in check_frozen(frozen, frozen_checksums(module))

    micro_batch = collate(examples, (0, 1, 2), "cpu")
    losses = []
    for each in (module, plain):
        loss = each(micro_batch) / micro_batch.label_count
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    ours, theirs = gradients(module), gradients(plain)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm() / gradient.norm()) < 1e-5, name


@pytest.mark.parametrize("part", ["weight", "absmax", "offset", "nested_absmax"])
def test_a_change_of_the_four_bits_or_of_their_scales_is_seen(part: str, tmp_path: Path) -> None:
    module = with_adapter(save_wide_model(tmp_path, "llama"), qlora())
    before = frozen_checksums(module)
    weight = next(iter(quantised_modules(module.base).values())).weight
    tensor = weight.data if part == "weight" else scales(weight)[part]
    tensor += 1
    with pytest.raises(CloisterError, match="1 base tensors have changed"):
        check_frozen(before, frozen_checksums(module))


@pytest.mark.parametrize("model_type", DENSE)
def test_every_dense_family_trains_and_its_adapter_reloads_in_stock_peft(model_type: str, tmp_path: Path) -> None:
    """Stock PEFT over the base as the model card loads it has the trained model's logits, bit for bit."""
    from peft import PeftModel

    base = save_wide_model(tmp_path / "base", model_type)
    module = with_adapter(base, qlora(), random_b=True)
    examples = ListExamples([30, 12])
    if FAMILIES[model_type].packing:
        check_isolation(module, CPU)
    check_base_loss(module, examples, CPU, new_adapter=False)
    module(collate(examples, (0,), "cpu")).backward()
    assert all(bool(gradient.any()) for gradient in gradients(module).values())

    save_adapter(module.model, adapter_state(module.model), tmp_path / "adapter", "s3://models/base")
    ids = torch.arange(3, 43)[None]
    with torch.no_grad(), module.evaluating(), stock_attention(module.base), stock_layers(module.model):
        attention = module.base.config._attn_implementation
        trained = module.model(input_ids=ids, use_cache=False).logits
    stock = stock_base(base, torch.float32, attention)
    with torch.no_grad():
        reloaded = PeftModel.from_pretrained(stock, tmp_path / "adapter").eval()(input_ids=ids, use_cache=False).logits
    assert torch.equal(trained, reloaded)


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_reader_that_finds_other_scales_ends_the_run(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bitsandbytes does on CPUs with AVX-512 where 64 does not divide a weight's inputs."""
    read = bitsandbytes.functional.dequantize_4bit

    def misread(packed: torch.Tensor, state: Any, **others: Any) -> torch.Tensor:
        matrix = read(packed, state, **others)
        matrix[-1] *= factor
        return matrix

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", misread)
    with pytest.raises(CloisterError, match=r"Self-test quantisation: on this machine's CPU bitsandbytes reads model"):
        load_base(save_wide_model(tmp_path, "llama"), Precision.FP32, 100, Quantization.NF4)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("tokens", [1, 32])
def test_a_kernel_for_evaluations_that_multiplies_by_something_else_ends_the_run(
    tokens: int, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply = bitsandbytes.matmul_4bit

    def scaled(x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        y = multiply(x, *others, **named)
        if not torch.is_grad_enabled() and len(x) == tokens:
            y[:, -1] *= 1.5
        return y

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", scaled)
    with pytest.raises(
        CloisterError, match=r"on this machine's CPU bitsandbytes multiplies by model\.layers"
    ) as caught:
        load_base(save_wide_model(tmp_path, "llama"), precision, 100, Quantization.NF4)
    assert caught.value.reason is FailureReason.SELF_TEST_FAILED


def test_a_weight_of_zeros_is_read_as_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    base, name = save_wide_model(tmp_path, "llama"), "model.layers.1.mlp.down_proj"
    tensors = load_file(base / "model.safetensors")
    tensors[f"{name}.weight"].zero_()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    model = load_base(base, Precision.FP32, 100, Quantization.NF4)
    weight = model.get_submodule(name).weight
    check_reading(name, weight)
    read = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *given, **named: read(*given, **named) + 1)
    with pytest.raises(CloisterError, match=f"reads {name} with differences"):
        check_reading(name, weight)


def test_where_bitsandbytes_cannot_quantise_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("\nMethod 'cquantize' not available in CPU-only version of bitsandbytes.\nReinstall.")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", cannot)
    with pytest.raises(CloisterError) as caught:
        load_base(save_wide_model(tmp_path, "llama"), Precision.FP32, 100, Quantization.NF4)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert caught.value.message == (
        "lora.quantization is NF4, but bitsandbytes cannot quantise on this machine's CPU: Method 'cquantize' not "
        "available in CPU-only version of bitsandbytes. Use a machine where it can, or leave lora.quantization out."
    )


def test_a_weight_of_another_shape_is_refused_as_it_is_without_quantisation(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = save_wide_model(tmp_path, "llama")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    for quantization in Quantization:
        with pytest.raises(CloisterError) as caught:
            load_base(base, Precision.FP32, 100, quantization)
        assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
        assert f"The weights lack {name}, or hold another shape" in caught.value.message
