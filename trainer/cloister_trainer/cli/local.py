"""A manifest on this machine: from a FineTuneJob to the Run that the three steps take."""

from __future__ import annotations

import itertools
import os
import uuid
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJob, FineTuneJobSpec
from cloister_api.loading import load_jobs
from cloister_api.places import places_read
from cloister_api.reasons import FailureReason
from cloister_api.resolve import resolve_spec
from cloister_api.run import LOCAL_NAMESPACE, Run, RunSettings, local_uid
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage

RAY_ADDRESS_ENVIRONMENT = "RAY_ADDRESS"
LOCAL_SETTINGS = RunSettings(require_enforced_egress=False)
"""One machine has no network policy that could be proven."""


def load_one_job(path: Path) -> FineTuneJob:
    """The single job in a file.

    Raises CloisterError(SpecInvalid) when the file cannot be read, is not valid, or holds several jobs.
    """
    jobs = load_jobs(path)
    if len(jobs) != 1:
        names = ", ".join(job.metadata.name for job in jobs)
        raise CloisterError(
            FailureReason.SPEC_INVALID,
            f"{path} holds {len(jobs)} jobs ({names}), and this command takes one. Put each into its own file.",
        )
    return jobs[0]


def local_storage() -> Storage:
    """The store that AWS's own environment names configure."""
    return open_storage(LOCAL_SETTINGS.storage, os.environ)


def local_run(job: FineTuneJob, spec: FineTuneJobSpec, storage: Storage) -> Run:
    """The run of `job` here, with `spec` in place of its own, and a uid that equal inputs give again."""
    namespace = job.metadata.namespace or LOCAL_NAMESPACE
    resolved = resolve_spec(spec, namespace, LOCAL_SETTINGS)
    uid = local_uid(namespace, job.metadata.name, resolved, source_listing(resolved, storage))
    return Run(uid=uid, namespace=namespace, name=job.metadata.name, spec=resolved, settings=LOCAL_SETTINGS)


def find_run(run: Run, storage: Storage, *, fresh: bool) -> Run:
    """The run to work on: `run`, or one of those that --fresh began with the same inputs after it was published.

    Their uids form a chain. --fresh takes the first that is not published; otherwise it is the newest that was begun,
    so that the command without --fresh goes on with what --fresh left.
    """
    found = run
    for number in itertools.count(1):
        following = run.model_copy(update={"uid": str(uuid.uuid5(uuid.UUID(run.uid), str(number)))})
        if not storage.exists(found.output.manifest):
            break
        if not fresh and not storage.list(following.layout.root) and not storage.exists(following.output.manifest):
            break
        found = following
    return found


def on_this_machine(spec: FineTuneJobSpec, reporter: Reporter) -> FineTuneJobSpec:
    """`spec` with gpusPerWorker chosen by what this machine has, where the job leaves it open.

    With RAY_ADDRESS set the job goes to that cluster, which decides what it has.

    Raises CloisterError(DoesNotFit) when the job asks for GPUs that are not here.
    """
    if os.environ.get(RAY_ADDRESS_ENVIRONMENT):
        return spec
    devices = gpu_count()
    asked = spec.distribution.workers * spec.distribution.gpus_per_worker
    if asked <= devices:
        return spec
    if devices == 0 and "gpus_per_worker" not in spec.distribution.model_fields_set:
        reporter.say("This machine has no GPU: training on its CPUs.")
        distribution = spec.distribution.model_copy(update={"gpus_per_worker": 0})
        return spec.model_copy(update={"distribution": distribution})
    raise CloisterError(
        FailureReason.DOES_NOT_FIT,
        f"spec.distribution asks for {spec.distribution.workers} x {spec.distribution.gpus_per_worker} GPUs, and this "
        f"machine has {devices}. Set distribution.workers and distribution.gpusPerWorker to what is here (0 trains on "
        "CPUs), or run the job on a cluster.",
    )


def gpu_count() -> int:
    """CUDA devices of this machine; the driver's device files tell it without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def source_listing(spec: FineTuneJobSpec, storage: Storage) -> list[list[str]]:
    """uri, size and ETag of every file that the run reads."""
    return [
        [entry.uri, str(entry.size), entry.etag] for uri in places_read(spec).values() for entry in storage.list(uri)
    ]
