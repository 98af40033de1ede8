"""An adapter that the run in resumeFrom trained to its end, taken over: publishing is all that is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cloister_api.job import FineTuneJobSpec
from cloister_api.layout import RunLayout, join
from cloister_api.reuse import reuse_key
from cloister_api.run import Run
from cloister_api.spec_cluster import Egress
from cloister_trainer.records import Checks, PlanFile
from cloister_trainer.storage import MissingObject, Storage


@dataclass(frozen=True)
class Earlier:
    """Another run whose training ended."""

    layout: RunLayout
    checks: Checks


def take_over(run: Run, plan: PlanFile, storage: Storage, scratch: Path) -> bool:
    """Copy the adapter that resumeFrom's run staged, with its checks and metrics, into this run's folder.

    Only an adapter that this job would train exactly so: its gate may differ, the rest of what affects the result may
    not. checks.json comes last, so what was cut short is not taken for a staged adapter. Tells whether it was taken.
    """
    if run.spec.resume_from is None:
        return False
    earlier = find_earlier(run, run.spec.resume_from.uri, plan, storage)
    if earlier is None:
        return False
    scratch.mkdir(parents=True, exist_ok=True)
    old, new, checks = earlier.layout, run.layout, earlier.checks
    named = [(old.adapter, new.adapter, file.name) for file in (checks.adapter, checks.adapter_config)]
    named += [(old.merged, new.merged, file.name) for file in checks.merged_files]
    named += [(old.metrics, new.metrics, listed.name) for listed in storage.list(old.metrics)]
    for source, target, name in named:
        copy(storage, join(source, name), join(target, name), scratch)
    copy(storage, old.checks_file, new.checks_file, scratch)
    return True


def find_earlier(run: Run, uri: str, plan: PlanFile, storage: Storage) -> Earlier | None:
    """The run at `uri`, when its adapter is staged, was made as `run` and `plan` ask for, and no less shut in."""
    run_uri, _, uid = uri.rstrip("/").rpartition("/")
    layout = RunLayout(run_uri, uid)
    try:
        other = Run.model_validate_json(storage.read(layout.run_file))
        other_plan = PlanFile.model_validate_json(storage.read(layout.plan_file))
        checks = Checks.model_validate_json(storage.read(layout.checks_file))
    except (MissingObject, ValidationError):
        return None
    if training_key(other.spec, other_plan) != training_key(run.spec, plan) or not shut_in(run, other, checks):
        return None
    staged = {listed.name: listed.size for listed in storage.list(layout.adapter)}
    complete = all(staged.get(file.name) == file.size for file in (checks.adapter, checks.adapter_config))
    return Earlier(layout, checks) if complete else None


def shut_in(run: Run, other: Run, checks: Checks) -> bool:
    """Whether the processes that trained proved as much of their egress as this job's would have to."""
    if run.spec.network.egress is Egress.OPEN:
        return True
    if other.spec.network.egress is Egress.OPEN:
        return False
    if not run.settings.require_enforced_egress:
        return True
    made, counts = checks.egress.get("processes", 0), ("controlAnswered", "canaryRefused")
    return made > 0 and all(checks.egress.get(count) == made for count in counts)


def training_key(spec: FineTuneJobSpec, plan: PlanFile) -> str:
    """Equal for two jobs that train the same adapter: reuseKey without the gate, which only judges it."""
    ungated = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"gate": None})})
    return reuse_key(ungated, plan.model.fingerprint, plan.data.digest, plan.initial_adapter)


def copy(storage: Storage, source: str, target: str, scratch: Path) -> None:
    """One object from one place of the store to another, through a file below `scratch`."""
    path = scratch / "taken-over"
    storage.download(source, path)
    storage.upload(path, target)
    path.unlink()
