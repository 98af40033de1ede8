"""YAML means to `cloister` what it means to kubectl.

The expected values are what sigs.k8s.io/yaml 1.6 makes of the same texts; tests/cluster asks kubectl itself.
"""

from __future__ import annotations

from typing import Any

import pytest

from cloister_api.yaml_tree import UnreadableError, dotted, plain_value, read_documents
from support.yaml_words import BOOLEANS, NULLS, NUMBERS, WORDS


@pytest.mark.parametrize(("word", "number"), NUMBERS.items())
def test_a_word_that_is_a_number(word: str, number: float) -> None:
    assert plain_value(word) == number
    assert isinstance(plain_value(word), int) == isinstance(number, int)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_only_looks_like_a_number_is_text(word: str) -> None:
    assert plain_value(word) == word


@pytest.mark.parametrize(("word", "truth"), BOOLEANS.items())
def test_booleans_are_those_of_yaml_1_1(word: str, truth: bool) -> None:
    assert plain_value(word) is truth


def test_nothing_is_null() -> None:
    assert [plain_value(word) for word in NULLS] == [None] * len(NULLS)


VALUES: list[tuple[str, Any]] = [
    ("a: 'on'\nb: \"5\"", {"a": "on", "b": "5"}),
    ("a: !!str 5\nb: !!int '5'\nc: !!float 5", {"a": "5", "b": 5, "c": 5}),
    ("a: |\n  1\n", {"a": "1\n"}),
    ("on: 1\n1.5: 2\n0x10: 3", {"true": 1, "1.5": 2, "16": 3}),
    ("a: &x {b: 1}\nc:\n  d: 2\n  <<: *x\n", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ("p: &p {a: 1}\nq: &q {b: 2}\nz: {<<: [*p, *q], b: 3}", {"p": {"a": 1}, "q": {"b": 2}, "z": {"a": 1, "b": 3}}),
    ('{"a": 1, "b": [1.5, null]}', {"a": 1, "b": [1.5, None]}),
    ("a: x#y # a comment", {"a": "x#y"}),
    ("%YAML 1.1\n---\na: on", {"a": True}),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_a_document(text: str, value: Any) -> None:
    (document,) = read_documents(text)
    assert document.value == value


UNREADABLE = [
    ("a: 1\nb: 2\na: 3", 3, "a is given twice, first on line 1; keep one"),
    ("x:\n  true: 1\n  yes: 2", 3, "x.true is given twice, first on line 2; keep one"),
    ("a:\n\tb: 1", 2, "found a tab; YAML takes spaces only, so indent with spaces, and quote a text that holds a tab"),
    ("a: [1, 2", 1, "a bracket or brace is still open"),
    ("a: 'x", 1, "a quote is still open"),
    ("a: b: c", 1, "check the indentation, and quote a value that holds a colon and a space"),
    ("a: *x", 1, "found undefined alias 'x'; define it with & before it is used"),
    ("a: &a [*a]", 1, "a[0] contains itself through an alias"),
    ("<<: 5", 1, "<< takes an alias of a mapping, or a list of such"),
    ("a: 1\nb: .inf", 2, ".inf is not a finite number"),
    ("? [a]\n: 1", 1, "a key must be a word, not a list or a mapping"),
    (": 1", 1, "a key must be a word; found nothing before the colon"),
    ("a: !python/object x", 1, "the tag !python/object cannot be used on 'x'; leave it out"),
    ("a: !!binary aGk=", 1, "the tag !!binary cannot be used on 'aGk='; leave it out"),
    ("a: \x00", None, "unacceptable character #x0000"),
    ("[" * 1500, None, "the values are nested too deeply"),
    ("x" * 1_000_001, None, "the file has 1,000,001 characters; a cluster takes at most 1,000,000"),
]


@pytest.mark.parametrize(("text", "line", "sentence"), UNREADABLE, ids=[sentence for _, _, sentence in UNREADABLE])
def test_what_cannot_be_read_is_told_with_its_line(text: str, line: int | None, sentence: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_documents(text)
    assert caught.value.line == line
    assert sentence in caught.value.sentence


def test_an_alias_bomb_is_refused_early() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    with pytest.raises(UnreadableError, match="aliases make more than 100,000 values"):
        read_documents("\n".join(lines))


def test_lines_of_values() -> None:
    (document,) = read_documents("# a job\nspec:\n  lora:\n    rank: 1\n  dataset:\n    sources:\n    - uri: x\n")
    assert document.line(("spec", "lora", "rank")) == 4
    assert document.line(("spec", "dataset", "sources", 0, "uri")) == 7
    assert document.line(("spec", "lora", "absent")) == 3
    assert dotted(("spec", "dataset", "sources", 0, "uri")) == "spec.dataset.sources[0].uri"


def test_empty_documents_are_left_out() -> None:
    assert [document.value for document in read_documents("---\n---\na: 1\n---\n# nothing\n")] == [{"a": 1}]
    assert read_documents("") == []


def test_an_anchor_may_be_set_anew() -> None:
    (document,) = read_documents("a: &x 1\nb: *x\nc: &x 2\nd: *x\n")
    assert document.value == {"a": 1, "b": 1, "c": 2, "d": 2}
