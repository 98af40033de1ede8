"""Tokenizers that write spaces as marks, as Llama 2's and Mistral's do: ids and spans are transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from support.prepared import DataJob, chat, template

WORDS = [
    "Hi",
    "there",
    "Hello",
    "to",
    "you",
    "all",
    "How",
    "are",
    "you",
    "today",
    "Very",
    "well",
    "thank",
    "you",
    "Question",
    "and",
    "answer",
    ":",
    "yes",
]


def legacy() -> Tokenizer:
    """Llama 2's way: a normaliser writes the marks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def metaspace(prepend: str) -> Tokenizer:
    """The newer way: a pre-tokenizer writes them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    return tokenizer


TOKENIZERS = {
    "legacy": legacy,
    "first": lambda: metaspace("first"),
    "always": lambda: metaspace("always"),
    "never": lambda: metaspace("never"),
}


@pytest.fixture(params=TOKENIZERS)
def sentencepiece(request: pytest.FixtureRequest, job: DataJob) -> DataJob:
    """The job with a small tokenizer of this kind and Mistral's template."""
    tokenizer = TOKENIZERS[request.param]()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*WORDS, *(f"{word} {word[:1]}" for word in WORDS)] * 4, trainer)
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template("mistral")
    folder = Path(job.folder) / "tokenizer"
    fast.save_pretrained(folder)
    return DataJob(job.folder, folder)


def test_conversations(sentencepiece: DataJob) -> None:
    row = chat("Hi there", "Hello to you all", "How are you", "Very well")
    sentencepiece.write([row])
    [example] = sentencepiece.prepare().examples()
    tokenizer = sentencepiece.tokenizer()
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False)
    assert example.tokens == encoded["input_ids"]
    expected = [False] * len(example.tokens)
    for answer in (" Hello to you all</s>", " Very well</s>"):
        start = text.index(answer)
        first, last = encoded.char_to_token(start), encoded.char_to_token(start + len(answer) - 1)
        expected[first : last + 1] = [True] * (last + 1 - first)
    assert example.trained == expected


def test_plain_prompts(sentencepiece: DataJob) -> None:
    sentencepiece.write([{"prompt": "Question and answer:", "completion": " yes"}])
    [example] = sentencepiece.prepare().examples()
    tokenizer = sentencepiece.tokenizer()
    assert example.tokens == tokenizer("Question and answer: yes</s>")["input_ids"]
    untrained = example.trained.count(False)
    assert example.tokens[:untrained] == tokenizer("Question and answer:")["input_ids"]
    assert all(example.trained[untrained:])
