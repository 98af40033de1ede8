"""What train left for publish, brought to the local disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_trainer.publish.digests import digest_file
from cloister_trainer.publish.metrics import read_metrics
from cloister_trainer.records import Checks, FileDigest
from cloister_trainer.storage import MissingObject, Storage


@dataclass(frozen=True)
class Staged:
    """The staged adapter, byte for byte what train's checks name."""

    folder: Path
    """Holds adapter_model.safetensors and adapter_config.json."""
    checks: Checks
    metrics: list[dict[str, Any]]


def read_checks(run: Run, storage: Storage) -> Checks:
    """checks.json beside the staged adapter.

    Raises CloisterError(AdapterInvalid) when it is missing, unreadable, or says that a check of train failed.
    """
    uri = run.layout.checks_file
    try:
        checks = Checks.model_validate_json(storage.read(uri))
    except MissingObject as error:
        raise _invalid(f"There is no staged adapter at {run.layout.adapter}: training has not finished.") from error
    except ValidationError as error:
        raise _invalid(f"{uri} was not written by this version of Cloister's train step.") from error
    if not checks.read_back_equal:
        raise _invalid(f"{uri} says that the staged adapter, read back from the store, differs from the trained one.")
    if not checks.frozen_unchanged:
        raise _invalid(f"{uri} says that frozen weights of the base model changed during training.")
    return checks


def read_staged(run: Run, storage: Storage, folder: Path) -> Staged:
    """Fetch adapter and metrics into `folder` and compare the adapter's digests with checks.json.

    Raises CloisterError(AdapterInvalid).
    """
    checks = read_checks(run, storage)
    for file in (checks.adapter, checks.adapter_config):
        _fetch(storage, join(run.layout.adapter, file.name), file, folder / file.name)
    return Staged(folder, checks, read_metrics(run, storage, max(checks.step, checks.best_step)))


def _fetch(storage: Storage, uri: str, expected: FileDigest, path: Path) -> None:
    try:
        storage.download(uri, path)
    except MissingObject as error:
        raise _invalid(f"{uri} is missing, though checks.json names it.") from error
    found = digest_file(expected.name, path)
    if found != expected:
        raise _invalid(
            f"{uri} has sha256 {found.sha256} and {found.size} bytes; checks.json, written when training ended, names "
            f"{expected.sha256} and {expected.size} bytes. The staged adapter was changed or damaged."
        )


def _invalid(sentence: str) -> CloisterError:
    return CloisterError(FailureReason.ADAPTER_INVALID, sentence)
