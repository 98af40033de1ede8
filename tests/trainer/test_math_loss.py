"""The loss: label tokens only, in chunks, equal to transformers' own; packed or not, on any number of workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cloister_api.spec_training import Precision
from cloister_trainer.train.attention import stock_attention
from cloister_trainer.train.evaluate import evaluate
from cloister_trainer.train.layout import collate, lay_out
from cloister_trainer.train.loss import Head, chunk_rows, summed_cross_entropy
from cloister_trainer.train.model import TrainingModule
from support.tiny_models import ListExamples, gradients, save_tiny_model, with_adapter

CPU = torch.device("cpu")
LENGTHS = [40, 12, 25, 8, 33, 17, 21, 9]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), "llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def module(llama: Path) -> TrainingModule:
    return with_adapter(llama, random_b=True)


@pytest.mark.parametrize("model_type", ["llama", "granite", "gemma2", "mistral", "deepseek_v3", "olmo3"])
def test_loss_and_gradients_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    """One example at a time through transformers' own forward pass, with windows shorter than the examples."""
    module = with_adapter(save_tiny_model(tmp_path, model_type), random_b=True)
    examples = ListExamples([40, 30])
    ours = module(collate(examples, (0, 1), "cpu"))
    ours.backward()
    our_gradients = gradients(module)

    total = torch.zeros(())
    with stock_attention(module.base):
        for i in range(2):
            ids = torch.from_numpy(examples.tokens(i).astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(examples.label_mask(i)), ids, -100)
            total = total + module.model(input_ids=ids, labels=labels, use_cache=False).loss * int(examples.trained[i])
    total.backward()

    assert float(ours.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    assert_close(our_gradients, gradients(module))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_has_the_same_loss_and_gradients_in_any_layout(
    module: TrainingModule, world_size: int, packing: bool
) -> None:
    assert_same_as_reference(module, *batch_gradients(module, world_size, packing))


def test_recomputing_activations_changes_nothing(module: TrainingModule) -> None:
    module.set_gradient_checkpointing(True)
    try:
        loss, found = batch_gradients(module, 1, packing=True)
    finally:
        module.set_gradient_checkpointing(False)
    assert_same_as_reference(module, loss, found)


def test_bf16_differs_by_rounding_only(llama: Path) -> None:
    exact = batch_gradients(with_adapter(llama, random_b=True), 1, packing=True)
    rounded = batch_gradients(with_adapter(llama, precision=Precision.BF16, random_b=True), 2, packing=True)
    assert rounded[0] == pytest.approx(exact[0], rel=2e-2)
    for name, gradient in exact[1].items():
        assert rounded[1][name].dtype is torch.float32
        cosine = nn.functional.cosine_similarity(gradient.flatten(), rounded[1][name].flatten(), dim=0)
        assert float(cosine) > 0.98, name


def test_validation_loss_is_the_same_on_any_number_of_ranks(module: TrainingModule) -> None:
    examples = ListExamples(LENGTHS)
    plan = TinyPlan()
    alone = evaluate(module, examples, plan, rank=0, world_size=1, device=CPU, beat=lambda: None)  # type: ignore[arg-type]
    shares = [
        evaluate(module, examples, plan, rank=rank, world_size=3, device=CPU, beat=lambda: None)  # type: ignore[arg-type]
        for rank in range(3)
    ]
    assert sum(labels for _, labels in shares) == alone[1] == int(examples.trained.sum())
    assert sum(loss for loss, _ in shares) == pytest.approx(alone[0], rel=1e-6)
    assert alone[0] == pytest.approx(batch_gradients(module, 1, packing=True)[0], rel=1e-6)


def test_a_micro_batch_without_labels_gives_zero_gradients(module: TrainingModule) -> None:
    loss = module(collate(ListExamples([5]), (), "cpu"))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients(module).values())


def test_chunks_add_up_to_the_whole() -> None:
    projection = nn.Linear(24, 50).requires_grad_(False)
    hidden, labels = torch.randn(45, 24, requires_grad=True), torch.randint(0, 50, (45,))
    head = Head(projection, vocabulary=chunk_rows(1, "cpu") // 16, scale=0.5, softcap=3.0)
    assert chunk_rows(head.vocabulary, "cpu") == 16

    loss = summed_cross_entropy(hidden, labels, head)
    found = torch.autograd.grad(3 * loss, hidden)
    whole = nn.functional.cross_entropy(head.logits(hidden), labels, reduction="sum")
    expected = torch.autograd.grad(3 * whole, hidden)

    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(summed_cross_entropy(hidden, labels, head), whole)


def test_full_logits_never_exist() -> None:
    hidden, labels = torch.randn(6000, 8, requires_grad=True), torch.randint(0, 4096, (6000,))
    head = RecordingHead(nn.Linear(8, 4096).requires_grad_(False), vocabulary=4096)
    summed_cross_entropy(hidden, labels, head).backward()
    assert sum(head.rows) == 6000
    assert max(head.rows) == chunk_rows(4096, "cpu") < 6000


@dataclass(frozen=True)
class RecordingHead(Head):
    rows: list[int] = field(default_factory=list)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return super().logits(hidden)


class TinyPlan:
    micro_batch_tokens, packing = 64, True


def batch_gradients(module: TrainingModule, world_size: int, packing: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss and gradients of one batch, micro-batch by micro-batch as the ranks would make them."""
    examples = ListExamples(LENGTHS)
    loss = 0.0
    for rank in lay_out(examples.lengths, np.arange(len(examples)), world_size, 64, packing):
        for content in rank:
            part = module(collate(examples, content, "cpu"))
            part.backward()
            loss += float(part.detach())
    return loss, gradients(module)


def assert_same_as_reference(module: TrainingModule, loss: float, found: dict[str, torch.Tensor]) -> None:
    expected_loss, expected = batch_gradients(module, 1, packing=False)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_close(found, expected)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal to float32 rounding, measured against each tensor's largest element."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = float(gradient.abs().max())
        assert size > 0, name
        assert float((found[name] - gradient).abs().max()) <= 2e-5 * size, name
