"""How one job's rows become tokens: the options of its spec with the model's tokenizer, and their digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJobSpec
from cloister_api.reasons import FailureReason
from cloister_api.run import canonical_json
from cloister_api.spec_data import ChatTemplate as ChatTemplateField
from cloister_api.spec_data import Dataset
from cloister_trainer.model.settings import max_length
from cloister_trainer.prepare.row_worker import RowOptions
from cloister_trainer.prepare.survey import SurveyedSource
from cloister_trainer.prepare.tokenizer import read_tokenizer, stop_ids, tokenizer_kit
from cloister_trainer.storage import MissingObject, Storage

STORED_FORMAT = 2
"""Raised when the same rows and options would give other tokens: older caches are then not used."""


def row_options(spec: FineTuneJobSpec, storage: Storage, model_folder: Path, position_limit: int) -> RowOptions:
    """The options, with training.maxLength or min(4096, the model's limit).

    Raises CloisterError SpecInvalid when maxLength is above the model's limit, ModelUnsupported without a usable
    tokenizer, ModelNotFound without the chat template's file.
    """
    longest = max_length(spec.training, position_limit)
    template = read_chat_template(storage, spec.model.chat_template)
    tokenizer, notes = read_tokenizer(model_folder, template)
    return RowOptions(
        kit=tokenizer_kit(tokenizer, stop_ids(model_folder), notes),
        train_on=spec.dataset.train_on,
        system_prompt=spec.dataset.system_prompt,
        too_long=spec.dataset.too_long,
        max_length=longest,
    )


def read_chat_template(storage: Storage, field: ChatTemplateField | None) -> str | None:
    """The template that the job gives in place of the model's own, or None."""
    if field is None:
        return None
    if field.uri is None:
        return field.inline
    try:
        return storage.read(field.uri).decode("utf-8")
    except MissingObject as error:
        raise CloisterError(FailureReason.MODEL_NOT_FOUND, f"model.chatTemplate.uri: {error.message}") from error
    except UnicodeDecodeError:
        raise CloisterError(
            FailureReason.SPEC_INVALID, f"model.chatTemplate.uri: {field.uri} is not UTF-8 text. Convert it."
        ) from None


def content_digest(options: RowOptions, dataset: Dataset, samples: int, surveyed: list[SurveyedSource]) -> str:
    """sha256 over all that the tokens depend on: rows by content and in order, tokenizer, template, options.

    File names do not count: the same rows elsewhere have the same tokens.
    """
    sha256 = hashlib.sha256()
    sources = [[one.source.weight, one.source.max_examples, one.source.held_out] for one in surveyed]
    validation = dataset.validation.model_dump(exclude={"uri"}) if dataset.validation else None
    choices = {
        "format": STORED_FORMAT,
        "tokenizer": options.kit.digest(),
        "trainOn": options.train_on,
        "systemPrompt": options.system_prompt,
        "tooLong": options.too_long,
        "maxLength": options.max_length,
        "deduplicate": dataset.deduplicate,
        "validation": validation,
        "samples": samples,
        "sources": sources,
    }
    sha256.update(canonical_json(choices).encode())
    for one in surveyed:
        sha256.update(sum(len(part.hashes) for part in one.parts).to_bytes(8, "little"))
        for part in one.parts:
            sha256.update(part.hashes.astype("<u8").tobytes())
    return sha256.hexdigest()


def check_rows(options: RowOptions, surveyed: list[SurveyedSource]) -> None:
    """Refuse options that the rows make meaningless. Raises CloisterError DatasetInvalid."""
    conversations = sum(one.conversations for one in surveyed)
    if options.system_prompt and not conversations:
        raise CloisterError(
            FailureReason.DATASET_INVALID,
            "dataset.systemPrompt goes before conversations, and the rows are plain text without a chat template. "
            "Remove dataset.systemPrompt, or write the rows as lists of messages.",
        )
    if conversations and options.kit.template is None:
        raise CloisterError(
            FailureReason.DATASET_INVALID,
            "The rows are conversations, and the model has no chat template, as base models have none. Give one in "
            "model.chatTemplate, or use rows with the strings prompt and completion.",
        )


def vocabulary_size(model_folder: Path) -> int | None:
    """Rows of the model's embedding by its config.json; None for a tokenizer alone, without one."""
    path = model_folder / "config.json"
    if not path.exists():
        return None
    return int(json.loads(path.read_text())["vocab_size"])
