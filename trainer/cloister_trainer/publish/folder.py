"""The adapter's immutable folder, file by file: the small ones built on disk, the merged model streamed through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cloister_api.errors import CloisterError
from cloister_api.layout import OutputLayout, join
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_trainer.publish.adapter_checks import CONFIG_FILE, published_config
from cloister_trainer.publish.base_files import files_beside_adapter
from cloister_trainer.publish.card import CARD_FILE, PLOT_FILE, render_card
from cloister_trainer.publish.digests import digest_file, digest_stream
from cloister_trainer.publish.facts import RunFacts
from cloister_trainer.publish.manifest import ADAPTER_FILE, MANIFEST_FILE
from cloister_trainer.publish.metrics import encode_metrics
from cloister_trainer.publish.obligations import notice_files
from cloister_trainer.publish.plots import for_file, plot_loss
from cloister_trainer.publish.report import render_report
from cloister_trainer.publish.sign import (
    SIGNATURE_FILE,
    SignatureMismatchError,
    SigningKey,
    sign_files,
    verify_signature,
)
from cloister_trainer.publish.staged import Staged
from cloister_trainer.records import FileDigest
from cloister_trainer.storage import AlreadyExists, MissingObject, Storage

CHECKS_FILE = "checks.json"
REPORT_FILE = "report.html"
METRICS_FILE = "metrics.jsonl"


class SealedMeanwhileError(Exception):
    """Another publisher of the same run completed the folder: nothing in it may change any more."""


@dataclass(frozen=True)
class LocalFolder:
    """Files on the local disk, as they will be named in the store. A pure function of the staged run: building them
    again gives the same bytes, so that a second publisher of the same run overwrites nothing with something else."""

    root: Path
    files: list[FileDigest]


def build_folder(facts: RunFacts, staged: Staged, storage: Storage, root: Path) -> LocalFolder:
    """Write every file but the merged model, the signature and the manifest below `root`."""
    run = facts.run
    contents = dict(files_beside_adapter(storage, facts.plan, run.spec.model.chat_template))
    contents |= notice_files(facts, contents)
    loss = plot_loss(facts.checks, staged.metrics)
    contents |= {
        CONFIG_FILE: published_config((staged.folder / CONFIG_FILE).read_bytes(), facts.plan.model.uri),
        CHECKS_FILE: (json.dumps(facts.checks.to_api(), indent=2, sort_keys=True) + "\n").encode(),
        METRICS_FILE: encode_metrics(staged.metrics),
        PLOT_FILE: for_file(loss).encode(),
        CARD_FILE: render_card(facts).encode(),
        REPORT_FILE: render_report(facts, staged.metrics, loss).encode(),
    }
    for name, data in contents.items():
        path = root / _contained(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (staged.folder / ADAPTER_FILE).rename(root / ADAPTER_FILE)
    names = sorted([ADAPTER_FILE, *contents])
    return LocalFolder(root, [digest_file(name, root / name) for name in names])


def upload_folder(
    folder: LocalFolder, facts: RunFacts, storage: Storage, scratch: Path, *, signed: bool
) -> list[FileDigest]:
    """Bring the folder and the merged model into the store, and remove what lies there and does not belong.

    Whatever is there is the leftover of a crash, or of a publisher of the same run that works at this moment. Raises
    SealedMeanwhileError once the folder has a manifest.
    """
    output, merged = facts.run.output, [f"merged/{file.name}" for file in facts.checks.merged_files]
    keep = {*(file.name for file in folder.files), *merged, MANIFEST_FILE, *([SIGNATURE_FILE] if signed else [])}
    for leftover in storage.list(output.folder):
        if leftover.name not in keep:
            _require_unsealed(storage, output)
            storage.delete(leftover.uri)
    for file in folder.files:
        if file.name == ADAPTER_FILE:
            _upload(storage, output, folder.root / file.name, file.name)
        else:
            _create(storage, output, folder.root / file.name, file)
    return [*folder.files, *_copy_merged(facts, storage, scratch)]


def _require_unsealed(storage: Storage, output: OutputLayout) -> None:
    if storage.exists(output.manifest):
        raise SealedMeanwhileError


def _upload(storage: Storage, output: OutputLayout, path: Path, name: str) -> None:
    """A file whose digest checks.json names: every publisher of the run writes the same bytes."""
    _require_unsealed(storage, output)
    storage.upload(path, join(output.folder, name))


def _create(storage: Storage, output: OutputLayout, path: Path, file: FileDigest) -> None:
    """A file that another version of this code may write differently: one that lies there goes only while it may."""
    uri = join(output.folder, file.name)
    try:
        storage.create(uri, path.read_bytes())
    except AlreadyExists:
        with storage.open(uri) as stream:
            found = digest_stream(file.name, stream)
        if found != file:
            _upload(storage, output, path, file.name)


def _copy_merged(facts: RunFacts, storage: Storage, scratch: Path) -> Iterator[FileDigest]:
    """The staged merged model, one file at a time on the local disk, compared with checks.json on the way.

    Raises CloisterError(AdapterInvalid), and SealedMeanwhileError where it is gone because it was published.
    """
    for expected in facts.checks.merged_files:
        source, path = join(facts.run.layout.merged, expected.name), scratch / "merged-file"
        try:
            with storage.open(source) as stream, path.open("wb") as copy:
                found = digest_stream(expected.name, stream, copy)
        except MissingObject as error:
            _require_unsealed(storage, facts.run.output)
            raise CloisterError(
                FailureReason.ADAPTER_INVALID, f"{source} is missing, though checks.json names it. Train again."
            ) from error
        if found != expected:
            raise CloisterError(
                FailureReason.ADAPTER_INVALID,
                f"{source} has sha256 {found.sha256}; checks.json, written by the merge, names {expected.sha256}.",
            )
        name = f"merged/{_contained(expected.name)}"
        _upload(storage, facts.run.output, path, name)
        path.unlink()
        yield found.model_copy(update={"name": name})


def write_signature(key: SigningKey, run: Run, files: list[FileDigest], storage: Storage) -> bytes:
    """The signature in the store: a valid one that is there already, else a new one.

    Raises SealedMeanwhileError when an invalid one belongs to a complete folder.
    """
    uri = join(run.output.folder, SIGNATURE_FILE)
    signature = sign_files(key, run.name, files)
    try:
        storage.create(uri, signature)
    except AlreadyExists:
        earlier = storage.read(uri)
        if _is_valid(earlier, key, files):
            return earlier
        _require_unsealed(storage, run.output)
        storage.write(uri, signature)
    return signature


def _is_valid(signature: bytes, key: SigningKey, files: list[FileDigest]) -> bool:
    try:
        verify_signature(signature, key.public, files)
    except SignatureMismatchError:
        return False
    return True


def _contained(name: str) -> PurePosixPath:
    """`name` as a path that stays below the folder.

    Raises CloisterError(AdapterInvalid).
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise CloisterError(FailureReason.ADAPTER_INVALID, f"{name!r} is not a file name below a folder.")
    return path
