"""The staged adapter: whether training has nothing left to do."""

from __future__ import annotations

from pydantic import ValidationError

from cloister_api.run import Run
from cloister_trainer.records import Checks
from cloister_trainer.storage import MissingObject, Storage


def completed_checks(run: Run, storage: Storage) -> Checks | None:
    """checks.json of a run whose training has ended, None while there is something left to do."""
    try:
        checks = Checks.model_validate_json(storage.read(run.layout.checks_file))
    except (MissingObject, ValidationError):
        return None
    sizes = {listed.name: listed.size for listed in storage.list(run.layout.adapter)}
    staged = all(sizes.get(file.name) == file.size for file in (checks.adapter, checks.adapter_config))
    return checks if staged else None
