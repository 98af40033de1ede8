"""Greedy answers in batches are those of one row at a time, and of transformers' own generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloister_trainer.records import SampleRow, TokensIndex
from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import trainable_parameters
from cloister_trainer.train.lora_layers import adapter_disabled
from cloister_trainer.train.samples import exact_matches, greedy_answers, new_token_limit
from support.tiny_models import VOCABULARY, save_tiny_model, with_adapter

CPU = torch.device("cpu")
STOP = 2
INDEX = TokensIndex(
    digest="0" * 64,
    train=[],
    validation=[],
    epoch_examples=0,
    epoch_tokens=0,
    epoch_trained_tokens=0,
    validation_examples=0,
    longest=30,
    stop_token_id=STOP,
    pad_token_id=0,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Words `w3` … `w127` are the tokens 3 … 127."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    words_model = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    words_model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words_model, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


class Question:
    """Prompts of different lengths, each with its answer and the stop token, as training rows."""

    rows = [
        SampleRow(prompt=[1, *range(3, 3 + n), 50 + n], answer=" ".join(f"w{60 + n + j}" for j in range(3)))
        for n in (2, 9, 5, 14)
    ]

    def tokens(self, index: int) -> Any:
        row = self.rows[index]
        return np.array([*row.prompt, *(int(word[1:]) for word in row.answer.split()), STOP], dtype=np.uint32)

    def label_mask(self, index: int) -> Any:
        return np.arange(len(self.tokens(index))) >= len(self.rows[index].prompt)


@pytest.fixture(scope="module", params=["llama", "mistral", "deepseek_v3"])
def memorised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that has learned the four answers by heart."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    module = with_adapter(save_tiny_model(folder, request.param))
    micro_batch = collate(Question(), (0, 1, 2, 3), "cpu")
    optimizer = torch.optim.AdamW(trainable_parameters(module.model).values(), lr=3e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = module(micro_batch)
        loss.backward()
        optimizer.step()
    return module


def test_what_was_learned_by_heart_is_answered(memorised: Any, tokenizer: Any) -> None:
    answers = greedy_answers(memorised, Question.rows, tokenizer, INDEX, CPU, lambda: None)
    assert answers == [row.answer for row in Question.rows]
    assert exact_matches(Question.rows, answers) == 4
    with adapter_disabled(memorised.model):
        before = greedy_answers(memorised, Question.rows, tokenizer, INDEX, CPU, lambda: None)
    assert exact_matches(Question.rows, before) == 0


def test_padding_and_batches_change_no_answer(memorised: Any, tokenizer: Any) -> None:
    with adapter_disabled(memorised.model):
        together = greedy_answers(memorised, Question.rows, tokenizer, INDEX, CPU, lambda: None)
        alone = [greedy_answers(memorised, [row], tokenizer, INDEX, CPU, lambda: None)[0] for row in Question.rows]
    assert together == alone


def test_answers_are_those_of_transformers(memorised: Any, tokenizer: Any) -> None:
    row = Question.rows[1]
    limit = new_token_limit([row], tokenizer)
    with adapter_disabled(memorised.model):
        ours = greedy_answers(memorised, [row], tokenizer, INDEX, CPU, lambda: None)[0]
        from cloister_trainer.train.attention import stock_attention

        with stock_attention(memorised.base), memorised.evaluating():
            ids = torch.tensor([row.prompt])
            theirs = memorised.base.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, use_cache=True
            )
    assert ours == tokenizer.decode(theirs[0, len(row.prompt) :], skip_special_tokens=True)


def test_an_answer_may_be_half_as_long_again_as_the_longest_expected(tokenizer: Any) -> None:
    assert new_token_limit(Question.rows, tokenizer) == 12
    long = SampleRow(prompt=[1], answer="w5 " * 1000)
    assert new_token_limit([long], tokenizer) == 512


def test_no_rows_have_no_answers(memorised: Any, tokenizer: Any) -> None:
    assert greedy_answers(memorised, [], tokenizer, INDEX, CPU, lambda: None) == []
    assert exact_matches([], []) == 0


def test_white_space_at_the_ends_does_not_count() -> None:
    row = SampleRow(prompt=[1], answer="a b\n")
    assert exact_matches([row, row], [" a b", "a  b"]) == 1
