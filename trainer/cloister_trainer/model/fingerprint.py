"""One digest that changes whenever the model does, computed without reading its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from cloister_api.run import canonical_json
from cloister_trainer.model.small_files import CONFIG, TOKENIZER_FILES
from cloister_trainer.records import FileDigest, ListedFile


def fingerprint(weight_files: Iterable[ListedFile], small_files: Iterable[FileDigest], header_digest: str) -> str:
    """sha256 over the weight files' names, sizes and ETags, the config, the tokenizer files and the headers.

    Licences, model card and generation settings are left out: they do not affect the trained adapter.
    """
    defining = [
        (file.name, file.sha256)
        for file in small_files
        if file.name == CONFIG or any(fnmatchcase(file.name, pattern) for pattern in TOKENIZER_FILES)
    ]
    weights = [(file.name, file.size, file.etag) for file in weight_files]
    return hashlib.sha256(canonical_json([sorted(weights), sorted(defining), header_digest]).encode()).hexdigest()
