"""The run file: all that prepare, train and publish are told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from cloister_api.base import ApiEnum, ApiModel, Duration
from cloister_api.job import MUTABLE_FIELDS, FineTuneJobSpec
from cloister_api.layout import OutputLayout, RunLayout, join

RUN_VERSION = 1
ATTEMPT_ENVIRONMENT = "CLOISTER_ATTEMPT"
LOCAL_NAMESPACE = "local"
UID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "cloister.dev")


class LicenseEvidence(ApiEnum):
    """Whether a licence that is only stated is enough."""

    ANY = "Any"
    FOUND = "Found"


class StorageDefaults(ApiModel):
    """The administrator's object store; the job's Secret goes over it."""

    endpoint: str | None = None
    """URL of the S3 endpoint. Absent: AWS's own."""
    region: str | None = None
    """Region. Absent: us-east-1."""
    ca_file: str | None = None
    """Path of a CA bundle that signs the endpoint's certificate."""
    path_style: bool = True
    """Address buckets by path, not by host name."""
    run_uri: str | None = None
    """Where run folders lie, for example s3://cloister-runs/{namespace}. Absent: below each job's output.uri."""


class RunSettings(ApiModel):
    """The administrator's settings that the steps need."""

    gpu_memory: dict[str, str] = {}
    """Memory of one GPU by profile, for example {default: 80Gi}."""
    allowed_licenses: list[str] = []
    """Licence identifiers that may be trained on; empty allows all."""
    license_evidence: LicenseEvidence = LicenseEvidence.ANY
    """Found: a licence that is only stated in the job is refused."""
    control_address: str | None = None
    """host:port of the operator's control listener. Absent: no egress proof (local runs)."""
    canary_address: str | None = None
    """host:port that no policy allows."""
    control_patience: Duration = "5m"
    """How long control is tried, for example while the operator is started again."""
    require_enforced_egress: bool = True
    """Fail when the canary answers or control does not."""
    images: dict[str, str] = {}
    """Image references with digests by role."""
    storage: StorageDefaults = StorageDefaults()
    """The administrator's object store."""


class Run(ApiModel):
    """One run, resolved: every field that does not depend on the data has its value."""

    version: Literal[1] = 1
    uid: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    """metadata.uid in a cluster, a UUIDv5 of the inputs in local runs."""
    namespace: str
    name: str
    spec: FineTuneJobSpec
    settings: RunSettings = RunSettings()

    @property
    def layout(self) -> RunLayout:
        """Where the run folder's files lie."""
        return RunLayout(run_uri_of(self.spec), self.uid)

    @property
    def output(self) -> OutputLayout:
        """Where the published files lie."""
        return OutputLayout(self.spec.output.uri, self.uid)


def run_uri_of(spec: FineTuneJobSpec) -> str:
    """storage.runUri, else `<output.uri>/runs`."""
    return spec.storage.run_uri or join(spec.output.uri, "runs")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def local_uid(namespace: str | None, name: str, spec: FineTuneJobSpec, listings: Sequence[Sequence[str]]) -> str:
    """The uid of a local run: equal for the same job on the same inputs.

    `listings` holds one row per source file: uri, size, and mtime or ETag. The fields that a job may change while it
    lives (hold, suspend, ...) do not count: changing them goes on with the same run.
    """
    fixed = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=set(MUTABLE_FIELDS))
    inputs = [namespace or LOCAL_NAMESPACE, name, fixed, sorted(map(list, listings))]
    return str(uuid.uuid5(UID_NAMESPACE, canonical_json(inputs)))
