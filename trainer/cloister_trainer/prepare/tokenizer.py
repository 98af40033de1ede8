"""The model's tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason

_PROBE = "a"
_TEXT = (
    "In 2024, 1234567 users don't PAY'LL  3.14159\n\n  for_x != e\u0301 \ufb01 \u4e2d\u6587\t\u201cok\u201d);\n/x\r\n"
    "\u0939\u093f\u0928\u094d\u0926\u0940"
)
"""Text that common pre-tokenizers and normalizers treat each in its own way."""


def load_tokenizer(folder: Path, chat_template: str | None) -> Any:
    """`read_tokenizer`'s tokenizer."""
    return read_tokenizer(folder, chat_template)[0]


def read_tokenizer(folder: Path, chat_template: str | None) -> tuple[Any, list[str]]:
    """The fast tokenizer in a model folder, with the given template over its own, and what is worth knowing of it.

    Only fast tokenizers, which tell where in the text a token lies, and never the model folder's own code. Text is cut
    as tokenizer.json says, which is how the model was trained.
    Raises CloisterError ModelUnsupported.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        notes = _follow_file(tokenizer, folder / "tokenizer.json") if tokenizer.is_fast else []
    except Exception as error:
        # The tokenizers library raises plain Exception for a tokenizer.json that it cannot use.
        raise _unsupported(f"the tokenizer cannot be loaded ({type(error).__name__})") from error
    if not tokenizer.is_fast:
        raise _unsupported("the tokenizer has no fast version")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer, notes


def _follow_file(tokenizer: Any, file: Path) -> list[str]:
    """Have the tokenizer cut text as the file says; a note when it would have found other tokens in `_TEXT`.

    Classes of transformers' that are made for a family take the vocabulary from the file and build the rest themselves.
    What they know of special tokens stays. The general class reads all of the file.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast or not file.exists():
        return []
    backend, by_file = tokenizer.backend_tokenizer, Tokenizer.from_file(str(file))
    special = next(iter(tokenizer.all_special_tokens), "")

    def found() -> list[list[int]]:
        return [backend.encode(text, add_special_tokens=False).ids for text in (_TEXT, f"{special}{_TEXT}")]

    by_class = found()
    backend.normalizer, backend.pre_tokenizer = by_file.normalizer, by_file.pre_tokenizer
    backend.model, backend.decoder = by_file.model, by_file.decoder
    return [] if found() == by_class else [_note(type(tokenizer).__name__)]


def _note(class_name: str) -> str:
    import transformers

    return (
        f"transformers {transformers.__version__} loads this model's tokenizer as {class_name}, which cuts text "
        "otherwise than the model's tokenizer.json says. Training follows tokenizer.json: load the tokenizer with "
        "PreTrainedTokenizerFast.from_pretrained for serving, and check that the server does."
    )


def _unsupported(what: str) -> CloisterError:
    return CloisterError(
        FailureReason.MODEL_UNSUPPORTED,
        f"In the model folder, {what}. Expected tokenizer.json and tokenizer_config.json as transformers' "
        "save_pretrained writes them; load and save the tokenizer with them, "
        "and put the files into the model folder.",
    )


@dataclass(frozen=True)
class TokenizerKit:
    """All that a worker process needs to tokenise as the model's tokenizer does, without loading transformers whole."""

    tokenizer_json: str = field(repr=False)
    """The tokenizers library's own serialisation, without post-processor, truncation and padding: special tokens are
    put round plain text by `prefix` and `suffix`, and offsets are not trimmed."""
    template: str | None
    tool_template: str | None
    """The template for rows with tools; the same one in most models."""
    template_variables: dict[str, Any]
    """What transformers hands to every template: bos_token, eos_token and their like."""
    added_tokens: dict[str, int]
    """Tokens that are found in text as they are written, special ones among them, with their ids."""
    prefix: tuple[int, ...]
    """Ids that the tokenizer puts before plain text: none, or the beginning-of-sequence token."""
    bos_token: str | None
    bos_id: int | None
    eos_token: str | None
    eos_id: int | None
    pad_id: int
    stop_tokens: tuple[str, ...] = ()
    """Tokens besides the end-of-sequence token at which servers end an answer."""
    notes: tuple[str, ...] = ()
    """What is worth knowing of it."""

    def digest(self) -> str:
        """sha256 over everything here."""
        content = json.dumps([self.tokenizer_json, self.template, self.tool_template, self.template_variables,
                              self.prefix, self.eos_token, *self.stop_tokens], sort_keys=True)  # fmt: skip
        return hashlib.sha256(content.encode()).hexdigest()


def stop_ids(model_folder: Path) -> list[int]:
    """The ids at which an answer ends, as generation_config.json has them, else config.json; empty without either."""
    for name in ("generation_config.json", "config.json"):
        try:
            fields = json.loads((model_folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        found = fields.get("eos_token_id") if isinstance(fields, dict) else None
        ids = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, int)]
        if ids:
            return ids
    return []


def tokenizer_kit(tokenizer: Any, stops: Sequence[int] = (), notes: Sequence[str] = ()) -> TokenizerKit:
    """The kit of a loaded fast tokenizer; `stops` are the model's `stop_ids`. Raises CloisterError ModelUnsupported."""
    around = tokenizer(_PROBE)["input_ids"]
    inside = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if not inside:
        raise _unsupported(f"the tokenizer, which transformers loads as {type(tokenizer).__name__}, drops text")
    before = next(i for i in range(len(around)) if around[i : i + len(inside)] == inside)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(post_processor=None, truncation=None, padding=None)
    template, tool_template = _templates(tokenizer)
    eos = tokenizer.eos_token
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TokenizerKit(
        tokenizer_json=json.dumps(backend, ensure_ascii=False),
        template=template,
        tool_template=tool_template,
        template_variables=dict(tokenizer.special_tokens_map),
        prefix=tuple(around[:before]),
        added_tokens=tokenizer.get_added_vocab(),
        bos_token=tokenizer.bos_token,
        bos_id=tokenizer.bos_token_id,
        eos_token=eos,
        eos_id=tokenizer.eos_token_id,
        pad_id=pad_id if pad_id is not None else 0,
        stop_tokens=tuple(token for token, at in tokenizer.get_added_vocab().items() if at in stops and token != eos),
        notes=tuple(notes),
    )


def _templates(tokenizer: Any) -> tuple[str | None, str | None]:
    """The template for rows without and with tools, as transformers chooses it."""
    if not tokenizer.chat_template:
        return None, None
    tools: list[dict[str, Any]] = [{}]
    try:
        return tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=tools)
    except ValueError as error:
        raise CloisterError(
            FailureReason.MODEL_UNSUPPORTED,
            "The model has several chat templates and none is named default. Choose one in model.chatTemplate.",
        ) from error
