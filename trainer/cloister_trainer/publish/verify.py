"""`cloister verify`: is a published adapter what its manifest, its pointer and its signature say?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cloister_api.base import ApiEnum, ApiModel
from cloister_api.errors import CloisterError
from cloister_api.layout import OutputLayout, join
from cloister_api.reasons import FailureReason
from cloister_trainer.publish.adapter_checks import model_name
from cloister_trainer.publish.card import CARD_FILE, cell, origin_rows, read_origin_rows
from cloister_trainer.publish.cleanup import RECORD_FILE, DeletionRecord
from cloister_trainer.publish.digests import digest_stream
from cloister_trainer.publish.manifest import MANIFEST_FILE, ChecksSummary, Manifest
from cloister_trainer.publish.pointer import Pointer, read_pointer
from cloister_trainer.publish.sealed import SealedFolder
from cloister_trainer.publish.sign import (
    SIGNATURE_FILE,
    UNSIGNED_FILES,
    SignatureMismatchError,
    load_public_key,
    verify_signature,
)
from cloister_trainer.records import Checks, FileDigest
from cloister_trainer.storage import MissingObject, ObjectInfo, Storage, StorageError

CHECKS_FILE = "checks.json"
POINTER_FILE = "current.json"


class Result(ApiEnum):
    """How a check ended."""

    PASSED = "Passed"
    FAILED = "Failed"
    NOT_CHECKED = "NotChecked"


class VerifyCheck(ApiModel):
    """One thing that was looked at."""

    name: str
    result: Result
    detail: str
    """What was found, as a sentence."""


class VerifyReport(ApiModel):
    """What `cloister verify` found."""

    version: Literal[1] = 1
    ok: bool
    """No check failed."""
    uri: str
    """The folder that was looked at."""
    checks: list[VerifyCheck]
    not_proven: list[str]
    manifest_digest: str | None = None
    manifest: Manifest | None = None
    deleted: DeletionRecord | None = None
    """The record of deleted run data, where it can be read."""


def verify_adapter(storage: Storage, uri: str, public_key: Path | None = None) -> VerifyReport:
    """Recompute every digest of the adapter at `uri`: an output prefix with current.json, or a folder below one.

    Raises CloisterError: AdapterInvalid when there is no published adapter, SigningFailed when the key cannot be read,
    and the store's reasons. What does not match is a failed check, not an error.
    """
    folder, pointer = _find_folder(storage, uri)
    try:
        data = storage.read(join(folder, MANIFEST_FILE))
    except MissingObject:
        return _report(folder, [_failed("manifest", f"{MANIFEST_FILE} is missing in {folder}.")])
    try:
        sealed = SealedFolder.of(data)
    except ValidationError as error:
        found = f"{error.error_count()} fields are not as expected"
        return _report(folder, [_failed("manifest", f"{MANIFEST_FILE} is not a manifest of Cloister: {found}.")])
    listed = [info for info in storage.list(folder) if info.name != MANIFEST_FILE]
    named = {file.name for file in sealed.manifest.files}
    files = _digests(storage, [info for info in listed if info.name in named])
    checks = [
        _check_pointer(sealed, folder, pointer),
        _check_files(sealed.manifest, files),
        _check_unexpected(sorted({info.name for info in listed} - named)),
        _check_recorded(storage, folder, sealed.manifest, files),
        _check_signature(storage, folder, sealed.manifest, files, public_key),
    ]
    return _report(folder, checks, sealed, _deletion_record(storage, sealed.manifest))


def to_json(report: VerifyReport) -> str:
    """The report as JSON."""
    return json.dumps(report.to_api(), indent=2, ensure_ascii=False)


def _find_folder(storage: Storage, uri: str) -> tuple[str, Pointer | None]:
    """The folder to look at, and the pointer of its output prefix."""
    uri = uri.rstrip("/").removesuffix(f"/{POINTER_FILE}").removesuffix(f"/{MANIFEST_FILE}")
    here = read_pointer(storage, OutputLayout(uri, ""))
    if here is not None:
        return join(uri, here.pointer.folder), here.pointer
    if not storage.exists(join(uri, MANIFEST_FILE)):
        raise CloisterError(
            FailureReason.ADAPTER_INVALID,
            f"There is no published adapter at {uri}: expected current.json (an output prefix) or manifest.json "
            "(an adapter's folder).",
        )
    above = read_pointer(storage, OutputLayout(uri.rpartition("/")[0], ""))
    return uri, None if above is None else above.pointer


def _digests(storage: Storage, found: Sequence[ObjectInfo]) -> dict[str, FileDigest]:
    """Every file, hashed as it is read."""
    digests = {}
    for info in found:
        with storage.open(info.uri) as stream:
            digests[info.name] = digest_stream(info.name, stream)
    return digests


def _check_pointer(sealed: SealedFolder, folder: str, pointer: Pointer | None) -> VerifyCheck:
    name = "pointer"
    if pointer is None:
        return VerifyCheck(name=name, result=Result.NOT_CHECKED, detail="No current.json lies beside the folder.")
    if pointer.folder != folder.rpartition("/")[2]:
        superseded = f"current.json names {pointer.folder}: this adapter is not, or no longer, the published one."
        return VerifyCheck(name=name, result=Result.NOT_CHECKED, detail=superseded)
    if pointer.manifest_digest != sealed.digest:
        return _failed(
            name, f"{MANIFEST_FILE} has sha256 {sealed.digest}; current.json names {pointer.manifest_digest}."
        )
    if pointer.uid != sealed.manifest.uid:
        return _failed(name, f"{MANIFEST_FILE} is of run {sealed.manifest.uid}; current.json names {pointer.uid}.")
    return _passed(name, "current.json names this manifest by its sha256.")


def _check_files(manifest: Manifest, files: dict[str, FileDigest]) -> VerifyCheck:
    missing = [file.name for file in manifest.files if file.name not in files]
    changed = [file.name for file in manifest.files if file.name in files and files[file.name] != file]
    problems = [
        *([f"missing: {', '.join(missing)}"] if missing else []),
        *([f"changed: {', '.join(changed)}"] if changed else []),
    ]
    if problems:
        return _failed("files", "; ".join(problems) + ".")
    return _passed("files", f"all {len(manifest.files)} files have the recorded sha256 and size.")


def _check_unexpected(unexpected: Sequence[str]) -> VerifyCheck:
    if unexpected:
        return _failed("nothing else", f"the manifest does not name {', '.join(unexpected)}.")
    return _passed("nothing else", "the folder holds no file that the manifest does not name.")


def _check_recorded(storage: Storage, folder: str, manifest: Manifest, files: dict[str, FileDigest]) -> VerifyCheck:
    """The manifest repeats what checks.json and the model card say, and a signature covers these two."""
    name = "recorded facts"
    if not {CHECKS_FILE, CARD_FILE} <= set(files):
        return VerifyCheck(name=name, result=Result.NOT_CHECKED, detail=f"{CHECKS_FILE} or {CARD_FILE} is missing.")
    card = storage.read(join(folder, CARD_FILE)).decode(errors="replace")
    try:
        checks = Checks.model_validate_json(storage.read(join(folder, CHECKS_FILE)))
    except ValidationError:
        return _failed(name, f"{CHECKS_FILE} cannot be read.")
    repeated = {
        "checks": (manifest.checks, ChecksSummary.of(checks)),
        "the base model's digest": (manifest.base_model.digest, checks.base_digest),
        "train's egress proof": (manifest.egress.train, checks.egress),
        "GPU seconds": (manifest.cost.gpu_seconds, checks.gpu_seconds),
    }
    different = [what for what, (stated, recorded) in repeated.items() if stated != recorded]
    different += _not_as_in_card(manifest, card)
    if different:
        return _failed(name, f"the manifest disagrees with {CHECKS_FILE} or {CARD_FILE} on {', '.join(different)}.")
    return _passed(name, f"the manifest agrees with {CHECKS_FILE} and {CARD_FILE}.")


def _not_as_in_card(manifest: Manifest, card: str) -> list[str]:
    """What the manifest states otherwise than the card; whole lines are compared, for a card holds many words."""
    model = manifest.base_model
    intro = (
        f"A LoRA adapter for **{cell(model_name(model.uri))}** ({model.architecture}, {model.parameters:,} parameters)"
    )
    lines = {
        "the name": f"# {cell(manifest.name)}\n",
        "the base model's name, architecture or size": f"{intro}, trained with\n",
        "the base model's URI": f"With PEFT, where `BASE` is a local folder with the base model (`{model.uri}`) and ",
    }
    expected = origin_rows(
        model.license, model.digest, manifest.dataset.digest, manifest.provenance, manifest.egress.summary
    )
    rows = set(expected) ^ set(read_origin_rows(card))
    different = [what for what, line in lines.items() if f"\n{line}" not in card]
    return different + sorted({f"the card's row {row[2:].partition(' | ')[0]}" for row in rows})


def _check_signature(
    storage: Storage, folder: str, manifest: Manifest, files: dict[str, FileDigest], public_key: Path | None
) -> VerifyCheck:
    name = "signature"
    if public_key is None:
        signed = manifest.signature is not None
        detail = "signed, and no key was given (--key)." if signed else "the adapter is not signed."
        return VerifyCheck(name=name, result=Result.NOT_CHECKED, detail=detail)
    key = load_public_key(public_key)
    if SIGNATURE_FILE not in files:
        return _failed(name, f"a key was given, and the folder has no {SIGNATURE_FILE}.")
    signed_files = [file for file in files.values() if file.name not in UNSIGNED_FILES]
    try:
        verify_signature(storage.read(join(folder, SIGNATURE_FILE)), key, signed_files)
    except SignatureMismatchError as error:
        return _failed(name, f"{error}.")
    return _passed(name, f"made with the key {key.fingerprint}, over {len(signed_files)} files.")


def _deletion_record(storage: Storage, manifest: Manifest) -> DeletionRecord | None:
    """deleted.json of the run folder; whoever verifies may well not be allowed to read there."""
    try:
        return DeletionRecord.model_validate_json(storage.read(join(manifest.run_uri, RECORD_FILE)))
    except (StorageError, ValidationError):
        return None


def _report(
    folder: str,
    checks: list[VerifyCheck],
    sealed: SealedFolder | None = None,
    deleted: DeletionRecord | None = None,
) -> VerifyReport:
    return VerifyReport(
        ok=all(check.result is not Result.FAILED for check in checks),
        uri=folder,
        checks=checks,
        not_proven=_not_proven(sealed.manifest, checks) if sealed else [],
        manifest_digest=sealed.digest if sealed else None,
        manifest=sealed.manifest if sealed else None,
        deleted=deleted,
    )


def _not_proven(manifest: Manifest, checks: list[VerifyCheck]) -> list[str]:
    """What nobody should read into the page."""
    signed = any(check.name == "signature" and check.result is Result.PASSED for check in checks)
    license_facts, egress = manifest.base_model.license, manifest.egress
    sentences = [
        "That the adapter is good or harmless for any use: the numbers are those of the run's own validation rows.",
        "That the data may be used for this, or what it contains: only its digest is recorded.",
        "Who asked, the ticket and the classification: they are copied from the job as it was applied.",
    ]
    if signed:
        sentences.append(
            f"What stands in {MANIFEST_FILE} alone, such as times: the signature covers every other file; "
            "the manifest is protected by the store's access rules."
        )
    else:
        sentences.append(
            "That nobody with write access to the store replaced files, manifest and pointer together: "
            "only a signature checked with a key that came another way shows that."
        )
    if license_facts.evidence in ("Stated", "Family"):
        sentences.append(f"The licence: its evidence is only {license_facts.evidence}, no licence text was found.")
    if not (egress.prepare or egress.train or egress.publish):
        sentences.append("That nothing left the machine during the run: no egress proof was recorded.")
    return sentences


def _passed(name: str, detail: str) -> VerifyCheck:
    return VerifyCheck(name=name, result=Result.PASSED, detail=detail)


def _failed(name: str, detail: str) -> VerifyCheck:
    return VerifyCheck(name=name, result=Result.FAILED, detail=detail)
