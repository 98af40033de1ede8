"""The start-up self-tests catch what they are for: each is shown a set-up that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Precision
from cloister_trainer.train import attention
from cloister_trainer.train.attention import Segments, segment_attention
from cloister_trainer.train.lora import trainable_parameters
from cloister_trainer.train.selftests import (
    check_base_loss,
    check_finite,
    check_frozen,
    check_isolation,
    check_moved,
    frozen_checksums,
)
from support.tiny_models import ListExamples, adapter_state, save_tiny_model, with_adapter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("qwen3_moe"), "qwen3_moe")


@contextmanager
def broken_attention(forward: Callable[..., Any]) -> Iterator[None]:
    AttentionInterface.register(attention.NAME, forward)
    try:
        yield
    finally:
        attention.register()


def one_segment(*args: Any, segments: Segments, **kwargs: Any) -> Any:
    total = sum(segments.lengths)
    return segment_attention(*args, segments=Segments((total,), torch.tensor([0, total])), **kwargs)


def unscaled(*args: Any, scaling: float, **kwargs: Any) -> Any:
    return segment_attention(*args, scaling=10 * scaling, **kwargs)


@pytest.mark.parametrize("precision", list(Precision))
def test_isolated_segments_pass(llama: Path, precision: Precision) -> None:
    assert check_isolation(with_adapter(llama, precision=precision), CPU) == "other segments differ by 0"


@pytest.mark.parametrize("precision", list(Precision))
def test_attention_across_segments_is_caught(llama: Path, precision: Precision) -> None:
    module = with_adapter(llama, precision=precision)
    with broken_attention(one_segment), pytest.raises(CloisterError, match=r"Self-test isolation: .*packing") as failed:
        check_isolation(module, CPU)
    assert failed.value.reason is FailureReason.SELF_TEST_FAILED


def test_attention_across_segments_is_caught_in_a_mixture_of_experts(qwen3_moe: Path) -> None:
    module = with_adapter(qwen3_moe)
    assert check_isolation(module, CPU)
    with broken_attention(one_segment), pytest.raises(CloisterError, match="Self-test isolation"):
        check_isolation(module, CPU)


@pytest.mark.parametrize("precision", list(Precision))
def test_the_first_loss_is_the_base_models(llama: Path, precision: Precision) -> None:
    assert check_base_loss(with_adapter(llama, precision=precision), ListExamples([40, 20]), CPU, new_adapter=True)


@pytest.mark.parametrize("precision", list(Precision))
def test_attention_that_differs_from_transformers_is_caught(llama: Path, precision: Precision) -> None:
    module = with_adapter(llama, precision=precision)
    with broken_attention(unscaled), pytest.raises(CloisterError, match="Self-test base loss: transformers finds"):
        check_base_loss(module, ListExamples([40]), CPU, new_adapter=True)


def test_a_new_adapter_that_is_not_without_effect_is_caught(llama: Path) -> None:
    module = with_adapter(llama, random_b=True)
    with pytest.raises(CloisterError, match="Self-test base loss: a new adapter changes the loss"):
        check_base_loss(module, ListExamples([40]), CPU, new_adapter=True)
    assert check_base_loss(module, ListExamples([40]), CPU, new_adapter=False)


def test_an_adapter_tensor_that_does_not_move_is_caught(llama: Path) -> None:
    module = with_adapter(llama)
    start = adapter_state(module.model)
    with torch.no_grad():
        for parameter in list(trainable_parameters(module.model).values())[1:]:
            parameter.add_(0.1)
    with pytest.raises(CloisterError, match=r"1 of 28 adapter tensors have not moved, .*q_proj.lora_A"):
        check_moved(start, adapter_state(module.model))


def test_a_number_that_is_not_finite_is_caught() -> None:
    with pytest.raises(CloisterError, match="Self-test movement: 1 adapter tensors are not finite, b among them"):
        check_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})


@pytest.mark.parametrize("precision", list(Precision))
def test_a_changed_base_weight_is_caught(llama: Path, precision: Precision) -> None:
    module = with_adapter(llama, precision=precision)
    before = frozen_checksums(module)
    assert check_frozen(before, frozen_checksums(module)) == f"{len(before)} base tensors unchanged"
    with torch.no_grad():
        module.base.model.layers[1].mlp.up_proj.base_layer.weight[3, 5] *= 1.01
    with pytest.raises(CloisterError, match=r"Self-test frozen weights: 1 base tensors have changed, .*up_proj"):
        check_frozen(before, frozen_checksums(module))


def test_few_logits_are_made_of_a_long_example(llama: Path) -> None:
    """The memory plan knows of no logits beside a chunk of the loss."""
    module = with_adapter(llama)
    rows: list[int] = []
    module.base.lm_head.register_forward_hook(lambda _module, _inputs, logits: rows.append(logits.shape[1]))
    check_base_loss(module, ListExamples([96], prompt_share=0.1), CPU, new_adapter=True)
    assert rows == [64]
