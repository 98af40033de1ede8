"""Where tokens lie, told by their lengths, is where the tokenizer's own offsets say that they lie."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from cloister_trainer.prepare.positions import OffsetPositions, byte_lengths, byte_positions
from cloister_trainer.prepare.tokenizer import load_tokenizer, tokenizer_kit

PIECES = ["Hello ", "wörld", "日本語", "😀👍🏽", "\n\n", "  ", "<|im_end|>", "a", "1234", "\x00", "'s", "\u200b", "ﬁ"]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    """SmolLM2's tokenizer as prepare uses it."""
    return Tokenizer.from_str(tokenizer_kit(load_tokenizer(smollm2, None)).tokenizer_json)


def normalized_token(tokenizer: Tokenizer) -> None:
    """Add a token that is found in normalised text."""
    from tokenizers import normalizers

    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("[A]", normalized=True)])


def test_a_byte_that_the_vocabulary_lacks_is_left_to_offsets(tokenizer: Tokenizer) -> None:
    lengths = byte_lengths(tokenizer.to_str())
    assert lengths is not None
    text = "a\x04b"
    assert byte_positions(lengths, np.array(tokenizer.encode(text).ids, np.uint32), text) is None


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("content", ["[A]", "日本", "<think>"])
def test_added_tokens_are_as_long_as_they_are_written(tokenizer: Tokenizer, content: str, normalized: bool) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.normalizer = None
    other.add_tokens([AddedToken(content, normalized=normalized)])
    assert_agreement(other, [*PIECES, content])


def test_both_ways_agree_on_every_character(tokenizer: Tokenizer) -> None:
    assert_agreement(tokenizer, PIECES)


def test_both_ways_agree_for_single_bytes(small_tokenizer: Path) -> None:
    kit = tokenizer_kit(load_tokenizer(small_tokenizer, None))
    assert_agreement(Tokenizer.from_str(kit.tokenizer_json), PIECES)


def assert_agreement(tokenizer: Tokenizer, pieces: list[str]) -> None:
    """Offsets and lengths tell the same place of every character in texts of these pieces."""
    lengths = byte_lengths(tokenizer.to_str())
    assert lengths is not None
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(generator.choices(pieces, k=generator.randint(1, 12)))
        encoding = tokenizer.encode(text, add_special_tokens=False)
        [fast] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
        assert fast.ids == encoding.ids
        by_offsets = OffsetPositions(encoding, text)
        by_lengths = byte_positions(lengths, np.array(encoding.ids, np.uint32), text)
        assert by_lengths is not None
        for position in range(len(text) + 1):
            token = by_offsets.token_at(position)
            assert by_lengths.token_at(position) == token
            if token < len(encoding.ids):
                assert by_lengths.reaches_before(token, position) == by_offsets.reaches_before(token, position)


def test_text_that_a_normaliser_would_change_is_left_to_offsets(tokenizer: Tokenizer) -> None:
    lengths = byte_lengths(tokenizer.to_str())
    assert lengths is not None
    decomposed = "e\u0301"
    ids = np.array(tokenizer.encode(decomposed).ids, np.uint32)
    assert byte_positions(lengths, ids, decomposed) is None


def test_ids_that_do_not_hold_the_whole_text_are_left_to_offsets(tokenizer: Tokenizer) -> None:
    lengths = byte_lengths(tokenizer.to_str())
    assert lengths is not None
    ids = np.array(tokenizer.encode("Hello there").ids[:-1], np.uint32)
    assert byte_positions(lengths, ids, "Hello there") is None


def test_other_kinds_of_tokenizers_have_no_such_lengths(tokenizer: Tokenizer) -> None:
    from tokenizers import models, normalizers, pre_tokenizers

    assert byte_lengths(Tokenizer(models.WordLevel({"a": 0}, "a")).to_str()) is None
    assert byte_lengths(Tokenizer(models.BPE()).to_str()) is None
    for change in (
        lambda one: setattr(one.model, "unk_token", "<|endoftext|>"),
        lambda one: setattr(one.model, "byte_fallback", True),
        lambda one: setattr(one.model, "end_of_word_suffix", "</w>"),
        lambda one: setattr(one.model, "continuing_subword_prefix", "##"),
        lambda one: one.add_tokens([AddedToken("[A]", lstrip=True)]),
        lambda one: one.add_tokens([AddedToken("[A]", rstrip=True)]),
        normalized_token,
        lambda one: setattr(one, "normalizer", normalizers.Lowercase()),
        lambda one: setattr(one, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda one: setattr(one, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    ):
        other = Tokenizer.from_str(tokenizer.to_str())
        change(other)
        assert byte_lengths(other.to_str()) is None
