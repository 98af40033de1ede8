"""Files of the base model that publish needs: its configuration, and what travels with the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_api.spec_data import ChatTemplate
from cloister_trainer.model.small_files import CONFIG, INDEX, MODEL_CARD
from cloister_trainer.publish.digests import digest_bytes
from cloister_trainer.records import FileDigest, ModelRecord, PlanFile
from cloister_trainer.storage import MissingObject, Storage

PUBLISHED_MODEL_CARD = "BASE_MODEL_README.md"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATES = (CHAT_TEMPLATE, "chat_template.json", "additional_chat_templates/*")
NOT_PUBLISHED = (CONFIG, "generation_config.json", INDEX, MODEL_CARD)
"""They describe the base model's own folder: beside an adapter they would make it look like a whole model."""


def fetch_config(storage: Storage, model: ModelRecord, folder: Path) -> None:
    """Put the base's config.json into `folder`."""
    record = next(file for file in model.small_files if file.name == CONFIG)
    (folder / record.name).write_bytes(_read(storage, join(model.uri, record.name), record))


def files_beside_adapter(
    storage: Storage, plan: PlanFile, template: ChatTemplate | None
) -> Iterator[tuple[str, bytes]]:
    """Tokenizer, licence and notice files: name below the adapter's folder, and content.

    The model card is copied under another name when it is the licence's evidence. A chat template of the job replaces
    all of the model's own. Raises CloisterError(AdapterInvalid) when a file is no longer what prepare read.
    """
    model = plan.model
    evidence = {*model.license.files, model.license.file}
    for record in model.small_files:
        if template is not None and any(fnmatchcase(record.name, pattern) for pattern in CHAT_TEMPLATES):
            continue
        if record.name not in NOT_PUBLISHED:
            yield record.name, _read(storage, join(model.uri, record.name), record)
        elif record.name == MODEL_CARD and MODEL_CARD in evidence:
            yield PUBLISHED_MODEL_CARD, _read(storage, join(model.uri, record.name), record)
    if template is not None and template.inline is not None:
        yield CHAT_TEMPLATE, template.inline.encode()
    elif template is not None:
        assert plan.chat_template is not None, "prepare records the template of every job that gives one"
        yield CHAT_TEMPLATE, _read(storage, str(template.uri), plan.chat_template)


def _read(storage: Storage, uri: str, record: FileDigest) -> bytes:
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
        f"What the run was prepared with has changed: {what}. Restore the file and publish again; the staged "
        "adapter stays.",
    )
