"""The ConfigMap with the run file: everything that the steps are told."""

from __future__ import annotations

import json

from cloister_api.job import FineTuneJobSpec
from cloister_api.resolve import resolve_spec
from cloister_api.run import Run, RunSettings, StorageDefaults
from cloister_operator.names import run_file_name
from cloister_operator.observe.facts import Job
from cloister_operator.render.metadata import Rendered, metadata
from cloister_operator.settings import Settings

FOLDER = "/etc/cloister"
RUN_FILE = "run.json"
CA_FILE = "ca.crt"
TRAINER = "trainer"
"""The trainer's name among a run's images."""


def run_settings(settings: Settings) -> RunSettings:
    """The administrator's settings that the steps need."""
    storage, network = settings.storage, settings.network
    return RunSettings(
        gpu_memory={
            name: profile.gpu_memory for name, profile in settings.profiles.items() if profile.gpu_memory is not None
        },
        allowed_licenses=settings.allowed.licenses,
        license_evidence=settings.allowed.license_evidence,
        control_address=network.control_address,
        canary_address=network.canary_address,
        control_patience=settings.patience.control,
        require_enforced_egress=network.require_enforced_egress,
        images={TRAINER: settings.images.trainer},
        storage=StorageDefaults(
            endpoint=storage.endpoint,
            region=storage.region,
            ca_file=f"{FOLDER}/{CA_FILE}" if storage.ca else None,
            path_style=storage.path_style,
            run_uri=storage.run_uri,
        ),
    )


def resolved_spec(job: Job, spec: FineTuneJobSpec, settings: Settings) -> FineTuneJobSpec:
    """The spec with the administrator's defaults."""
    return resolve_spec(spec, job.namespace, run_settings(settings))


def run_config_map(job: Job, spec: FineTuneJobSpec, settings: Settings) -> Rendered:
    """ConfigMap `<job>-run`, written once: nobody changes what a run was told."""
    run = Run(
        uid=job.uid,
        namespace=job.namespace,
        name=job.name,
        spec=resolved_spec(job, spec, settings),
        settings=run_settings(settings),
    )
    data = {RUN_FILE: json.dumps(run.to_api(), indent=2, ensure_ascii=False) + "\n"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, settings, run_file_name(job.name)),
        "immutable": True,
        "data": data | ({CA_FILE: settings.storage.ca} if settings.storage.ca else {}),
    }
