"""publish's early check, made before anything is computed: can this output be written, signed, and is it free?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJobSpec
from cloister_api.layout import OutputLayout
from cloister_api.reasons import FailureReason
from cloister_api.reuse import result_fields
from cloister_api.run import Run
from cloister_api.spec_cluster import IfExists, Signing
from cloister_api.status import OutputStatus
from cloister_trainer.publish.manifest import Manifest
from cloister_trainer.publish.pointer import Pointer, StoredPointer, read_pointer
from cloister_trainer.publish.sealed import SealedFolder, read_sealed
from cloister_trainer.publish.sign import SigningKey, load_signing_key
from cloister_trainer.storage import Storage

_CONTENTS = "the contents of the model or of the dataset, or of the adapter in lora.initFrom"


@dataclass(frozen=True)
class Reused:
    """A published adapter that takes the place of one that this run would make."""

    sealed: SealedFolder
    output: OutputStatus
    message: str

    @property
    def uid(self) -> str:
        """The run that made it; this run itself when it has been published before."""
        return self.sealed.manifest.uid


def check_output(run: Run, storage: Storage, reuse_key: str | None, signing_key: Path | None) -> Reused | None:
    """Raise whatever would make publishing fail at the end of the run; or find that there is nothing to make.

    `reuse_key` is None until prepare has read model and data: ifExists Reuse is then left undecided. Raises
    CloisterError: SigningFailed, OutputExists, and the store's own reasons (StorageUnsupported when it ignores
    conditional writes).
    """
    key = load_key(run.spec.output.signing, signing_key)
    storage.check_conditional_put(run.spec.output.uri)
    return judge_existing(run, storage, read_pointer(storage, run.output), reuse_key, key)


def load_key(signing: Signing | None, path: Path | None) -> SigningKey | None:
    """The key to sign with; None when neither the job nor the command line asks for a signature.

    Raises CloisterError(SigningFailed).
    """
    if path is not None:
        return load_signing_key(path)
    if signing is not None:
        raise CloisterError(
            FailureReason.SIGNING_FAILED,
            f"output.signing names the Secret {signing.secret_name}, and no key was given. On one machine add "
            "--signing-key private.pem, or leave output.signing out.",
        )
    return None


def judge_existing(
    run: Run, storage: Storage, found: StoredPointer | None, reuse_key: str | None, key: SigningKey | None
) -> Reused | None:
    """What the adapter that current.json names means for this run; None when this run may publish its own.

    A run whose adapter was published and then replaced by another's stays published: the pointer is not moved back.

    Raises CloisterError: OutputExists naming the other run, and with ifExists Reuse what differs; SigningFailed when
    `key` did not sign the adapter.
    """
    if found is None:
        return None
    uid, mode = found.pointer.uid, run.spec.output.if_exists
    if uid == run.uid:
        sealed = _named_folder(run, storage, found.pointer)
        return _reused(run, sealed, key, f"This run has been published in {run.output.folder}.")
    where = f"{run.output.pointer} names the adapter of run {uid}"
    if storage.exists(run.layout.published_file) and (superseded := read_sealed(storage, run.output)) is not None:
        return _reused(run, superseded, key, f"This run has been published in {run.output.folder}; since then {where}.")
    if mode is IfExists.REPLACE or (mode is IfExists.REUSE and reuse_key is None):
        return None
    if mode is IfExists.FAIL:
        raise _exists(f"{where}. Choose another output.uri, or set output.ifExists to Reuse or Replace.")
    sealed = _named_folder(run, storage, found.pointer)
    if sealed.manifest.reuse_key != reuse_key:
        differences = ", ".join(what_differs(run, sealed.manifest)) or _CONTENTS
        raise _exists(
            f"{where}, which output.ifExists Reuse cannot take: it was made with another value of {differences}. "
            "Choose another output.uri, or set output.ifExists to Replace."
        )
    where = sealed.status(run.spec.output.uri).uri
    return _reused(run, sealed, key, f"Run {uid} has published an adapter from the same inputs and settings: {where}.")


def check_signed(sealed: SealedFolder, key: SigningKey | None) -> None:
    """Raise CloisterError(SigningFailed) when there is a key to sign with and another one, or none, signed `sealed`."""
    signature = sealed.manifest.signature
    if key is None or (signature is not None and signature.public_key_sha256 == key.public.fingerprint):
        return
    state = "is not signed" if signature is None else f"is signed with the key {signature.public_key_sha256}"
    raise CloisterError(
        FailureReason.SIGNING_FAILED,
        f"The adapter of run {sealed.manifest.uid} is complete and {state}; the key to sign with is {key.path} "
        f"({key.public.fingerprint}). Complete adapters are never changed: leave the key out to take this one as it "
        "is, or make it anew under another output.uri.",
    )


def what_differs(run: Run, other: Manifest) -> list[str]:
    """Fields of the spec that affect the result and differ, as dotted paths."""
    specs = (run.spec, FineTuneJobSpec.model_validate(other.spec))
    mine, theirs = (dict(_leaves("", result_fields(spec))) for spec in specs)
    return sorted(path for path in {*mine, *theirs} if mine.get(path) != theirs.get(path))


def _reused(run: Run, sealed: SealedFolder, key: SigningKey | None, message: str) -> Reused:
    check_signed(sealed, key)
    return Reused(sealed, sealed.status(run.spec.output.uri), message)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(f"{path}.{key}".lstrip("."), item)


def _named_folder(run: Run, storage: Storage, pointer: Pointer) -> SealedFolder:
    """The folder that current.json names, with the manifest that it names.

    Raises CloisterError(AdapterInvalid).
    """
    layout = OutputLayout(run.spec.output.uri, pointer.folder)
    sealed = read_sealed(storage, layout)
    if sealed is None or sealed.digest != pointer.manifest_digest:
        state = "is missing" if sealed is None else f"has sha256 {sealed.digest}"
        raise CloisterError(
            FailureReason.ADAPTER_INVALID,
            f"{layout.manifest} {state}, and {run.output.pointer} names {pointer.manifest_digest}. The published "
            "adapter was changed: do not use it; choose another output.uri.",
        )
    return sealed


def _exists(sentence: str) -> CloisterError:
    return CloisterError(FailureReason.OUTPUT_EXISTS, sentence)
