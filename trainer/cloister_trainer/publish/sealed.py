"""A complete folder: one that has its manifest.json. Nothing in it changes any more."""

from __future__ import annotations

import contextlib
import hashlib

from pydantic import ValidationError

from cloister_api.base import ApiModel
from cloister_api.errors import CloisterError
from cloister_api.layout import OutputLayout
from cloister_api.reasons import FailureReason
from cloister_api.status import OutputStatus
from cloister_trainer.publish.manifest import ADAPTER_FILE, Manifest
from cloister_trainer.publish.pointer import Pointer
from cloister_trainer.records import FileDigest
from cloister_trainer.storage import AlreadyExists, MissingObject, Storage


class SealedFolder(ApiModel):
    """A complete folder: its manifest, and the sha256 of the manifest's bytes."""

    manifest: Manifest
    digest: str
    manifest_size: int

    @classmethod
    def of(cls, data: bytes) -> SealedFolder:
        """The folder that manifest.json with these bytes describes.

        Raises pydantic.ValidationError.
        """
        manifest = Manifest.model_validate_json(data)
        return cls(manifest=manifest, digest=hashlib.sha256(data).hexdigest(), manifest_size=len(data))

    @property
    def adapter(self) -> FileDigest:
        """adapter_model.safetensors."""
        return next(file for file in self.manifest.files if file.name == ADAPTER_FILE)

    @property
    def pointer(self) -> Pointer:
        """current.json naming this folder."""
        return Pointer(uid=self.manifest.uid, folder=self.manifest.uid, manifest_digest=self.digest)

    def status(self, output_uri: str) -> OutputStatus:
        """What status.output shows of it."""
        return OutputStatus(
            uri=OutputLayout(output_uri, self.manifest.uid).folder,
            manifest_digest=self.digest,
            adapter_digest=self.adapter.sha256,
            size_bytes=sum(file.size for file in self.manifest.files) + self.manifest_size,
        )


def read_sealed(storage: Storage, output: OutputLayout) -> SealedFolder | None:
    """The folder of `output`, or None while it has no manifest.

    Raises CloisterError(AdapterInvalid) when manifest.json cannot be read as one.
    """
    try:
        data = storage.read(output.manifest)
    except MissingObject:
        return None
    try:
        return SealedFolder.of(data)
    except ValidationError as error:
        raise CloisterError(
            FailureReason.ADAPTER_INVALID,
            f"{output.manifest} is not a manifest of this version of Cloister. Run cloister verify on it; "
            "an adapter that was changed must not be used.",
        ) from error


def seal(storage: Storage, output: OutputLayout, manifest: Manifest) -> None:
    """Write manifest.json as the folder's last file; a manifest that is already there stays."""
    with contextlib.suppress(AlreadyExists):
        storage.create(output.manifest, manifest.encode())
