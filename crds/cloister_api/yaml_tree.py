"""YAML as kubectl reads it, with the line of every value.

The syntax is YAML 1.2's; what a plain word means is decided as kubectl's reader (sigs.k8s.io/yaml) does, so that a file
means the same to `cloister` and to a cluster: `2e-4`, `1e5`, `1_000`, `0x10` and `010` (octal: 8) are numbers; `yes`,
`no`, `on`, `off`, `y`, `n` are booleans; `~` and nothing are null; dates and `12:30` are strings.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

Path = tuple[str | int, ...]

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000
"""Values in a document, aliases followed: a few lines of nested aliases can stand for billions."""
MAX_DEPTH = 100
"""Lists and mappings around a value. A job has about ten; JSON readers stop at a few hundred."""

_PLAIN = Tag(suffix="plain")
_TAG = "tag:yaml.org,2002:"
_TAGGED: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "null": (type(None),)}
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"], True),
    **dict.fromkeys(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"], False),
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys([".nan", ".NaN", ".NAN"], math.nan),
    **dict.fromkeys([".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"], math.inf),
    **dict.fromkeys(["-.inf", "-.Inf", "-.INF"], -math.inf),
}
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_INTEGER_CHARACTERS = 309
"""A longer integer lies beyond a double's range: it is text, as for kubectl. Python's int() refuses 4,301 digits."""
_HALF = re.compile(r"[\ud800-\udfff]")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class UnreadableError(Exception):
    """A text that cannot be read as YAML: the sentence, and the line (from 1) where there is one."""

    def __init__(self, sentence: str, line: int | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.line = line


@dataclass
class Document:
    """One YAML document: its value as JSON would hold it, and the line (from 1) of each value by its path."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of the value at `path`, or of the nearest value around it."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def read_documents(text: str) -> list[Document]:
    """The documents of a YAML text, empty ones left out. Raises UnreadableError."""
    if len(text) > MAX_CHARACTERS:
        raise UnreadableError(f"the file has {len(text):,} characters; a cluster takes at most {MAX_CHARACTERS:,}")
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _PlainResolver
    yaml.composer.warn_double_anchors = False
    try:
        nodes = [node for node in yaml.compose_all(text) if node is not None]
        return [document for document in map(_document, nodes) if document.value is not None]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UnreadableError(_syntax_sentence(error), mark.line + 1 if mark else None) from None
    except YAMLError as error:
        sentence = " ".join(str(error).split()).replace(' in "<unicode string>"', "")
        raise UnreadableError(f"not YAML: {sentence}") from None
    except RecursionError:
        raise UnreadableError("the values are nested too deeply") from None


def plain_value(text: str) -> Any:
    """What a word without quotes means to kubectl: a boolean, a number, None, or the word itself."""
    if text in _WORDS:
        return _WORDS[text]
    number = text.replace("_", "") if text[:1].isdigit() or text[:1] in "+-" else text
    if len(number) <= _INTEGER_CHARACTERS and (found := _INTEGER.fullmatch(number)):
        for group, base in (("hex", 16), ("bin", 2), ("oct", 8), ("dec", 10)):
            if found[group] is not None:
                magnitude = int(found[group], base)
                return -magnitude if found["sign"] == "-" else magnitude
    if _FLOAT.fullmatch(number) and math.isfinite(value := float(number)):
        return int(value) if value.is_integer() else value
    return text


class _PlainResolver(VersionedResolver):
    """Leaves the meaning of plain scalars open: `plain_value` decides."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)


def _document(node: Node) -> Document:
    document = Document(None)
    document.value = _Builder(document).build(node, (), ())
    return document


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.values = 0

    def build(self, node: Node, path: Path, around: tuple[Node, ...]) -> Any:
        self.values += 1
        line = node.start_mark.line + 1
        if self.values > MAX_VALUES:
            raise UnreadableError(f"aliases make more than {MAX_VALUES:,} values", line)
        if any(node is other for other in around):
            raise UnreadableError(f"{dotted(path)} contains itself through an alias", line)
        if len(around) > MAX_DEPTH:
            raise UnreadableError(f"the values are nested more than {MAX_DEPTH} deep", line)
        self.document.lines.setdefault(path, line)
        if isinstance(node, ScalarNode):
            return _scalar(node)
        around = (*around, node)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*path, index), around) for index, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        return self._mapping(node, path, around)

    def _mapping(self, node: MappingNode, path: Path, around: tuple[Node, ...]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                for source in self._merge_sources(value_node):
                    merged = self._mapping(source, path, around) | merged
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                continue
            key, line = _key(key_node), key_node.start_mark.line + 1
            if key in own:
                where = dotted((*path, key))
                raise UnreadableError(f"{where} is given twice, first on line {first_lines[key]}; keep one", line)
            first_lines[key] = line
            own[key] = self.build(value_node, (*path, key), around)
            self.document.lines[*path, key] = line
        return merged | own

    def _merge_sources(self, node: Node) -> list[MappingNode]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        mappings = [source for source in sources if isinstance(source, MappingNode)]
        if len(mappings) != len(sources):
            raise UnreadableError("<< takes an alias of a mapping, or a list of such", node.start_mark.line + 1)
        return mappings


def _is_plain(node: Node) -> bool:
    return node.ctag is _PLAIN


def _is_merge(key: Node) -> bool:
    return _is_plain(key) and key.value == "<<"


def _scalar(node: ScalarNode) -> Any:
    line = node.start_mark.line + 1
    value = plain_value(node.value) if _is_plain(node) else _tagged_value(node, line)
    if isinstance(value, float) and not math.isfinite(value):
        raise UnreadableError(f"{node.value} is not a finite number", line)
    if isinstance(value, str) and _HALF.search(value):
        raise UnreadableError("a text holds half of a \\u pair (\\ud800 to \\udfff); write the character itself", line)
    return value


def _tagged_value(node: ScalarNode, line: int) -> Any:
    """A quoted scalar, or one with a tag that says its type."""
    tag = str(node.tag)
    if tag == f"{_TAG}str":
        return node.value
    value = plain_value(node.value)
    if type(value) in _TAGGED.get(tag.removeprefix(_TAG), ()):
        return value
    shown = tag.replace(_TAG, "!!")
    raise UnreadableError(f"the tag {shown} cannot be used on {node.value[:40]!r}; leave it out", line)


def _key(node: Node) -> str:
    """A mapping's key as JSON has it: always a string, so `on: 1` has the key `true`, as for kubectl."""
    line = node.start_mark.line + 1
    if not isinstance(node, ScalarNode):
        raise UnreadableError("a key must be a word, not a list or a mapping", line)
    value = _scalar(node)
    if value is None:
        raise UnreadableError("a key must be a word; found nothing before the colon", line)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _syntax_sentence(error: MarkedYAMLError) -> str:
    problem = " ".join(str(error.problem or error.context or "unreadable").split())
    if "'\\t'" in problem:
        return "found a tab; YAML takes spaces only, so indent with spaces, and quote a text that holds a tab"
    hints = {
        "undefined alias": "; define it with & before it is used",
        "mapping values are not allowed": "; check the indentation, and quote a value that holds a colon and a space",
        "<stream end>": "; a bracket or brace is still open",
        "end of stream": "; a quote is still open",
    }
    hint = next((hint for words, hint in hints.items() if words in problem), "")
    return f"not YAML: {problem}{hint}"


def dotted(path: Path) -> str:
    """A path as people write it: spec.dataset.sources[0].uri."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the document"
