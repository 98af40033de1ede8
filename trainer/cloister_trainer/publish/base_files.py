"""Files of the base model that publish needs: its configuration, and what travels with the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_api.spec_data import ChatTemplate
from cloister_trainer.model.small_files import CONFIG, INDEX, MODEL_CARD
from cloister_trainer.publish.digests import digest_bytes
from cloister_trainer.records import FileDigest, ModelRecord
from cloister_trainer.storage import MissingObject, Storage

PUBLISHED_MODEL_CARD = "BASE_MODEL_README.md"
CHAT_TEMPLATE = "chat_template.jinja"
NOT_PUBLISHED = (CONFIG, "generation_config.json", INDEX, MODEL_CARD)
"""They describe the base model's own folder: beside an adapter they would make it look like a whole model."""


def fetch_config(storage: Storage, model: ModelRecord, folder: Path) -> None:
    """Put the base's config.json into `folder`."""
    record = next(file for file in model.small_files if file.name == CONFIG)
    (folder / record.name).write_bytes(_read(storage, model.uri, record))


def files_beside_adapter(
    storage: Storage, model: ModelRecord, template: ChatTemplate | None
) -> Iterator[tuple[str, bytes]]:
    """Tokenizer, licence and notice files: name below the adapter's folder, and content.

    The model card is copied under another name when it is the licence's evidence. A chat template of the job replaces
    the model's own. Raises CloisterError(AdapterInvalid) when a file is no longer what prepare read.
    """
    evidence = {*model.license.files, model.license.file}
    for record in model.small_files:
        if record.name == CHAT_TEMPLATE and template is not None:
            continue
        if record.name not in NOT_PUBLISHED:
            yield record.name, _read(storage, model.uri, record)
        elif record.name == MODEL_CARD and MODEL_CARD in evidence:
            yield PUBLISHED_MODEL_CARD, _read(storage, model.uri, record)
    if template is not None:
        text = template.inline.encode() if template.inline is not None else storage.read(str(template.uri))
        yield CHAT_TEMPLATE, text


def _read(storage: Storage, model_uri: str, record: FileDigest) -> bytes:
    uri = join(model_uri, record.name)
    try:
        data = storage.read(uri)
    except MissingObject as error:
        raise _changed(f"{uri} was there when the run was prepared and is missing now") from error
    found = digest_bytes(record.name, data)
    if found != record:
        raise _changed(f"{uri} has sha256 {found.sha256}; when the run was prepared it had {record.sha256}")
    return data


def _changed(what: str) -> CloisterError:
    return CloisterError(
        FailureReason.ADAPTER_INVALID,
        f"The base model's folder changed during the run: {what}. Restore the file and publish again; the staged "
        "adapter stays.",
    )
