"""Attention within segments, against the plain formula in float32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.train.attention import NAME, Segments, implementation_for, segment_attention

LENGTHS = (7, 1, 600, 30)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SHAPES = {"grouped": (6, 2, 16, 16), "multi-head": (2, 2, 16, 16), "latent": (2, 2, 24, 16)}
"""Heads, key-value heads, width of queries and keys, width of values."""
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def module(**config: Any) -> nn.Module:
    layer = nn.Module()
    layer.config = SimpleNamespace(model_type="llama", **config)
    return layer


def segments_on(device: str) -> Segments:
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32, device=device)
    return Segments(LENGTHS, starts)


def draw(shape: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    heads, groups, width, value_width = SHAPES[shape]
    generator = torch.Generator().manual_seed(5)
    total = sum(LENGTHS)
    sizes = [(1, total, heads, width), (1, total, groups, width), (1, total, groups, value_width)]
    drawn = [torch.randn(size, generator=generator).transpose(1, 2).to(device, dtype) for size in sizes]
    return [tensor.requires_grad_() for tensor in drawn]


def formula(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    q, k, v = (x.float() for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    segment = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(q.device)
    place = torch.arange(len(segment), device=q.device)
    distance = place[:, None] - place[None, :]
    seen = (segment[:, None] == segment[None, :]) & (distance >= 0) & (distance < (window or len(segment)))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [None, 20, 10_000])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_attention_and_its_gradients(shape: str, dtype: torch.dtype, window: int | None, device: str) -> None:
    query, key, value = draw(shape, dtype, device)
    out, _ = segment_attention(
        module(), query, key, value, None, scaling=0.2, segments=segments_on(device), sliding_window=window
    )
    expected = formula(query, key, value, 0.2, window)
    assert out.dtype is dtype
    torch.testing.assert_close(out.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(6)).to(device)
    found = torch.autograd.grad((out.float() * direction).sum(), [query, key, value])
    wanted = torch.autograd.grad((expected * direction).sum(), [query, key, value])
    for ours, theirs in zip(found, wanted, strict=True):
        difference = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert float(difference) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_segment_alone_and_in_company_is_bit_equal(dtype: torch.dtype) -> None:
    query, key, value = draw("grouped", dtype, "cpu")
    packed, _ = segment_attention(module(), query, key, value, None, segments=segments_on("cpu"))
    part = slice(8, 608)
    alone, _ = segment_attention(
        module(),
        query[:, :, part],
        key[:, :, part],
        value[:, :, part],
        None,
        segments=Segments((600,), torch.tensor([0, 600])),
    )
    assert torch.equal(packed[:, part], alone)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"softcap": 30.0}, "uses soft-capped attention"),
        ({"s_aux": torch.zeros(2)}, "uses attention sinks"),
        ({"segments": None}, "does not hand keyword arguments down"),
        ({"attention_mask": torch.ones(1, 1, 638, 638)}, "builds an attention mask of its own"),
    ],
)
def test_what_it_does_not_compute_is_refused(extra: dict[str, Any], words: str) -> None:
    query, key, value = draw("multi-head", torch.float32, "cpu")
    settings = {"attention_mask": None, "segments": segments_on("cpu"), **extra}
    with pytest.raises(CloisterError, match=f"The model type llama {words}") as refused:
        segment_attention(module(), query, key, value, **settings)
    assert refused.value.reason is FailureReason.MODEL_UNSUPPORTED


@pytest.mark.parametrize(
    ("config", "longest", "expected"),
    [
        ({"model_type": "llama"}, 4096, NAME),
        ({"model_type": "mistral", "sliding_window": 16}, 4096, NAME),
        ({"model_type": "olmo3", "layer_types": ["sliding_attention", "full_attention"]}, 4096, NAME),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, 64, "eager"),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention"]}, 64, "eager"),
        ({"model_type": "minimax", "layer_types": ["linear_attention", "full_attention"]}, 64, "eager"),
        ({"model_type": "phimoe", "sliding_window": 2048}, 2048, NAME),
        ({"model_type": "phimoe", "sliding_window": 2048}, 2049, "eager"),
        ({"model_type": "phimoe", "sliding_window": None}, 9999, NAME),
    ],
)
def test_models_are_loaded_with_attention_that_computes_theirs(
    config: dict[str, Any], longest: int, expected: str
) -> None:
    assert implementation_for(SimpleNamespace(**config), longest) == expected
