"""The small files of a model folder: the allow-list, its bounds, and everything else that is left where it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.records import FileDigest
from cloister_trainer.storage import ObjectInfo, Storage

MIB = 1024 * 1024
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MODEL_CARD = "README.md"
TOKENIZER_KINDS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
"""Files that make a tokenizer; one row is enough."""
TOKENIZER_FILES = (
    *(name for kind in TOKENIZER_KINDS for name in kind),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
LICENSE_FILES = ("LICENSE*", "LICENCE*", "License*", "license*", "NOTICE*", "Notice*", "COPYING*", "USE_POLICY*")
READERS = 8

ALLOWED: dict[str, int] = {
    CONFIG: MIB,
    "generation_config.json": MIB,
    INDEX: 64 * MIB,
    MODEL_CARD: 4 * MIB,
    **dict.fromkeys(TOKENIZER_FILES, 64 * MIB),
    **dict.fromkeys(LICENSE_FILES, MIB),
}
"""Patterns of the files that prepare fetches, and the largest size in bytes that it takes."""


@dataclass(frozen=True)
class Sorted:
    """A listing divided into what is fetched by prepare and the rest."""

    small: list[ObjectInfo]
    rest: list[ObjectInfo]


def sort_listing(listing: Iterable[ObjectInfo]) -> Sorted:
    """Divide a listing by the allow-list.

    Raises ModelUnsupported for a file on it that is larger than such a file can be.
    """
    small, rest = [], []
    for info in listing:
        bound = size_bound(info.name)
        if bound is None:
            rest.append(info)
        elif info.size > bound:
            raise CloisterError(
                FailureReason.MODEL_UNSUPPORTED,
                f"{info.uri} has {info.size:,} bytes; a file of this name has at most {bound:,}. "
                "Put the model's own file there.",
            )
        else:
            small.append(info)
    return Sorted(small, rest)


def size_bound(name: str) -> int | None:
    """The bound of an allowed file, by its name relative to the folder; None for every other file."""
    if name.endswith((".py", ".safetensors")):
        return None
    for pattern, bound in ALLOWED.items():
        if fnmatchcase(name, pattern) and name.count("/") == pattern.count("/"):
            return bound
    return None


def is_license_file(name: str) -> bool:
    """Whether publish copies the file beside the adapter."""
    return any(fnmatchcase(name, pattern) for pattern in LICENSE_FILES)


def fetch_small_files(storage: Storage, files: Iterable[ObjectInfo], folder: Path) -> list[FileDigest]:
    """Write the files under `folder`, in parallel; their digests in order of name."""

    def fetch(info: ObjectInfo) -> FileDigest:
        data = storage.read(info.uri)
        path = folder / info.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return FileDigest(name=info.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(fetch, sorted(files, key=lambda info: info.name)))


def described(infos: Iterable[ObjectInfo]) -> list[str]:
    """Names of files for a person: those of a subfolder together, as `original/`."""
    return list(dict.fromkeys(info.name.partition("/")[0] + ("/" if "/" in info.name else "") for info in infos))
