"""Examples that are too long: cut so that something is trained, split, dropped or refused."""

from __future__ import annotations

import numpy as np
import pytest

from cloister_api.spec_data import TooLong
from cloister_trainer.prepare.examples import Example, TokenSpan, fit, make_example
from cloister_trainer.prepare.problems import RowError

BOS = 1


def example(length: int, *spans: TokenSpan, bos: bool = False) -> Example:
    """Tokens that are their own positions plus 100."""
    tokens = np.arange(100, 100 + length, dtype=np.uint32)
    tokens[0] = BOS if bos else tokens[0]
    return make_example(tokens, list(spans), 1)


def cut(length: int, *spans: TokenSpan, limit: int = 10, bos: bool = False) -> Example:
    [one] = fit(example(length, *spans, bos=bos), limit, TooLong.TRUNCATE, BOS)
    return one


def test_the_first_token_never_carries_loss() -> None:
    assert example(5, (0, 3)).spans == [(1, 3)]
    with pytest.raises(RowError, match="no trainable token"):
        example(5, (0, 1))


def test_what_fits_is_left_alone() -> None:
    whole = example(10, (4, 10))
    assert fit(whole, 10, TooLong.TRUNCATE, BOS) == [whole]


def test_the_end_is_cut_while_a_trained_token_stays() -> None:
    short = cut(20, (9, 15), (17, 20))
    assert short.tokens.tolist() == list(range(100, 110))
    assert short.spans == [(9, 10)]


def test_the_prompts_beginning_is_cut_when_it_fills_the_length() -> None:
    short = cut(30, (25, 30))
    assert short.tokens.tolist() == list(range(120, 130))
    assert short.spans == [(5, 10)]


def test_a_beginning_of_sequence_token_stays() -> None:
    short = cut(30, (25, 30), bos=True)
    assert short.tokens.tolist() == [BOS, *range(121, 130)]
    assert short.spans == [(5, 10)]


def test_a_long_answer_after_a_long_prompt_keeps_a_quarter_for_the_prompt() -> None:
    short = cut(100, (40, 100), limit=20)
    assert short.tokens.tolist() == list(range(135, 155))
    assert short.spans == [(5, 20)]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("limit", [8, 9, 33])
def test_some_token_is_always_trained_and_labels_stay_with_their_tokens(limit: int, bos: bool) -> None:
    generator = np.random.default_rng(limit)
    for _ in range(300):
        length = int(generator.integers(limit + 1, 200))
        start = int(generator.integers(1, length))
        end = int(generator.integers(start + 1, length + 1))
        short = cut(length, (start, end), limit=limit, bos=bos)
        assert len(short.tokens) == limit
        assert short.trained > 0
        for first, last in short.spans:
            assert first >= 1
            assert all(start <= int(token) - 100 < end for token in short.tokens[first:last])


def test_dropping_leaves_nothing() -> None:
    assert fit(example(11, (5, 11)), 10, TooLong.DROP, BOS) == []


def test_splitting_keeps_every_token_once() -> None:
    pieces = fit(example(25, (0, 25)), 10, TooLong.SPLIT, BOS)
    assert [token for piece in pieces for token in piece.tokens.tolist()] == list(range(100, 125))
    assert [piece.spans for piece in pieces] == [[(1, 10)], [(1, 10)], [(1, 5)]]


def test_a_last_piece_of_one_token_has_nothing_to_train() -> None:
    assert len(fit(example(21, (0, 21)), 10, TooLong.SPLIT, BOS)) == 2


def test_failing_says_the_length() -> None:
    with pytest.raises(RowError, match="an example of 11 tokens"):
        fit(example(11, (5, 11)), 10, TooLong.FAIL, BOS)
