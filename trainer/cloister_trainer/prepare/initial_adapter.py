"""The adapter that training starts from, by content: its URI alone does not say which weights lie there."""

from __future__ import annotations

import hashlib

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_api.run import canonical_json
from cloister_api.spec_training import AdapterSource
from cloister_trainer.storage import MissingObject, Storage

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def adapter_fingerprint(storage: Storage, source: AdapterSource | None) -> str | None:
    """sha256 over adapter_config.json's digest and the weights' size and ETag; None for a new adapter.

    Raises SpecInvalid when one of the two files is missing, StorageError.
    """
    if source is None:
        return None
    try:
        config = hashlib.sha256(storage.read(join(source.uri, CONFIG_FILE))).hexdigest()
        weights = storage.head(join(source.uri, WEIGHTS_FILE))
    except MissingObject as error:
        raise CloisterError(FailureReason.SPEC_INVALID, f"lora.initFrom.uri: {error.message}") from error
    return hashlib.sha256(canonical_json([config, weights.size, weights.etag]).encode()).hexdigest()
