"""A checkpoint's index: what the folder holds and where the run stood, sealed with a digest of its own."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from cloister_api.base import ApiModel
from cloister_api.layout import join
from cloister_api.run import canonical_json
from cloister_trainer.records import FileDigest
from cloister_trainer.storage import MissingObject, Storage
from cloister_trainer.train.state import TrainState

INDEX = "index.json"


class CheckpointIndex(ApiModel):
    """index.json: what the folder holds and where the run stood."""

    version: Literal[1] = 1
    step: int
    settings: dict[str, Any]
    """What must be equal for a run to go on from here."""
    files: list[FileDigest]
    state: TrainState
    sha256: str = ""
    """Of what is stored, in canonical JSON with this value empty. An index without the key is taken as it is."""

    def sealed(self, files: list[FileDigest]) -> bytes:
        """index.json for these files, with its own digest."""
        content = self.model_copy(update={"files": files}).to_api()
        return json.dumps({**content, "sha256": _content_digest(content)}).encode()

    @classmethod
    def parse(cls, stored: bytes) -> Self:
        """The index that was stored.

        The digest is over what was stored and not over the model, which another version may give more fields. Raises
        ValueError when it is cut, changed or of a version with fields that this one lacks.
        """
        content = json.loads(stored)
        if not isinstance(content, dict):
            raise ValueError("An index is a JSON object.")
        if "sha256" in content and content["sha256"] != _content_digest(content):
            raise ValueError("The index differs from its digest.")
        return cls.model_validate(content)


def read_index(storage: Storage, uri: str, step: int) -> CheckpointIndex | None:
    """The index of the checkpoint at `uri`, None without one of `step` that this version can read."""
    try:
        index = CheckpointIndex.parse(storage.read(join(uri, INDEX)))
    except (MissingObject, ValueError):
        return None
    return index if index.step == step else None


def listed_checkpoints(storage: Storage, checkpoints: str) -> list[tuple[int, set[str]]]:
    """Steps with the names below their folders, newest first."""
    found: dict[int, set[str]] = {}
    for listed in storage.list(checkpoints):
        folder, _, name = listed.name.partition("/")
        if name and folder.startswith("step-") and folder.removeprefix("step-").isdecimal():
            found.setdefault(int(folder.removeprefix("step-")), set()).add(name)
    return sorted(found.items(), reverse=True)


def _content_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json({**content, "sha256": ""}).encode()).hexdigest()
