"""manifest.json: everything that somebody must know about a published adapter, and the last file of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from cloister_api.base import ApiModel
from cloister_api.run import Run
from cloister_api.spec_cluster import Egress as EgressMode
from cloister_api.spec_cluster import Provenance
from cloister_api.spec_data import Dataset
from cloister_api.status import EvaluationStatus, ExactMatch, GateResult
from cloister_trainer.publish.gate import relative_improvement
from cloister_trainer.records import Checks, FileDigest, LicenseFinding, MemoryPart, PlanFile

ADAPTER_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "manifest.json"


class BaseModelFacts(ApiModel):
    """The model that the adapter belongs to."""

    uri: str
    digest: str
    """sha256 over the weight files, as train read them."""
    fingerprint: str
    model_type: str
    architecture: str
    parameters: int
    weight_files: list[FileDigest]
    license: LicenseFinding


class DatasetFacts(ApiModel):
    """The data that the adapter was trained on; never its content."""

    uris: list[str]
    """What was read: sources of weight above 0, and a separate validation source."""
    digest: str
    """sha256 over the rows' content in order, tokenizer, template and options; not over the files."""
    epoch_examples: int
    epoch_tokens: int
    epoch_trained_tokens: int
    validation_examples: int
    report: dict[str, Any]


class AdapterFacts(ApiModel):
    """What publish found in adapter_model.safetensors."""

    tensors: int
    parameters: int
    dtypes: list[str]
    max_rank: int
    zero_b_tensors: int
    """Matrices B that training left at zero."""


class ChecksSummary(ApiModel):
    """The numbers of checks.json."""

    step: int
    total_steps: int
    best_step: int
    base_loss: float | None = None
    loss: float | None = None
    relative_improvement: float | None = None
    exact_match: ExactMatch | None = None
    gate: GateResult
    final_train_loss: float
    read_back_equal: bool
    frozen_unchanged: bool
    self_tests: dict[str, str]

    @classmethod
    def of(cls, checks: Checks) -> ChecksSummary:
        """The summary of `checks`."""
        return cls(
            **checks.model_dump(include=set(cls.model_fields) - {"relative_improvement"}),
            relative_improvement=relative_improvement(checks),
        )

    @property
    def evaluation(self) -> EvaluationStatus:
        """What status.evaluation shows."""
        return EvaluationStatus(**{name: getattr(self, name) for name in EvaluationStatus.model_fields})


class Cost(ApiModel):
    """What the run took."""

    gpu_seconds: int
    train_seconds: float
    world_sizes: list[int]
    measured_memory: list[MemoryPart]


class Egress(ApiModel):
    """What was proven about network access, by step; empty where nothing was proven."""

    prepare: dict[str, Any] = {}
    train: dict[str, Any] = {}
    publish: dict[str, Any] = {}
    summary: str


class Signature(ApiModel):
    """Who can have signed the folder."""

    file: str
    method: str
    public_key_sha256: str
    """sha256 of the public key's DER SubjectPublicKeyInfo."""


class Deletion(ApiModel):
    """Run data that publish deletes; deleted.json in the run folder says when that was done."""

    what: str
    uri: str
    when: Literal["AfterPublication", "Kept"]


class Times(ApiModel):
    """When things happened, UTC."""

    first_step: str | None = None
    last_step: str | None = None
    published: str


class Manifest(ApiModel):
    """manifest.json. Files are named relative to the folder; the manifest itself is not among them."""

    version: Literal[1] = 1
    uid: str
    namespace: str
    name: str
    files: list[FileDigest]
    base_model: BaseModelFacts
    dataset: DatasetFacts
    provenance: Provenance | None = None
    spec: dict[str, Any]
    """The resolved spec."""
    plan: dict[str, Any]
    adapter: AdapterFacts
    checks: ChecksSummary
    cost: Cost
    seed: int
    versions: dict[str, str]
    images: dict[str, str]
    egress: Egress
    deletions: list[Deletion]
    run_uri: str
    """The run folder: plan, logs, metrics and what was kept."""
    times: Times
    reuse_key: str
    signature: Signature | None = None

    def encode(self) -> bytes:
        """The bytes of manifest.json."""
        return (json.dumps(self.to_api(), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def build_manifest(
    run: Run,
    plan: PlanFile,
    checks: Checks,
    adapter: AdapterFacts,
    files: list[FileDigest],
    *,
    egress: Egress,
    deletions: list[Deletion],
    times: Times,
    reuse_key: str,
    signature: Signature | None,
) -> Manifest:
    """The manifest of a folder that holds `files`."""
    model, data = plan.model, plan.data
    return Manifest(
        uid=run.uid,
        namespace=run.namespace,
        name=run.name,
        files=sorted(files, key=lambda file: file.name),
        base_model=BaseModelFacts(
            uri=model.uri,
            digest=checks.base_digest,
            fingerprint=model.fingerprint,
            model_type=model.model_type,
            architecture=model.architecture,
            parameters=model.base_parameters,
            weight_files=checks.weight_files,
            license=model.license,
        ),
        dataset=DatasetFacts(
            uris=dataset_uris(run.spec.dataset),
            digest=data.digest,
            epoch_examples=data.epoch_examples,
            epoch_tokens=data.epoch_tokens,
            epoch_trained_tokens=data.epoch_trained_tokens,
            validation_examples=data.validation_examples,
            report=data.report,
        ),
        provenance=run.spec.provenance,
        spec=run.spec.to_api(),
        plan=(checks.plan or plan.plan).to_api(),
        adapter=adapter,
        checks=ChecksSummary.of(checks),
        cost=Cost(**checks.model_dump(include=set(Cost.model_fields))),
        seed=run.spec.training.seed,
        versions=checks.versions,
        images=run.settings.images,
        egress=egress,
        deletions=deletions,
        run_uri=run.layout.root,
        times=times,
        reuse_key=reuse_key,
        signature=signature,
    )


def dataset_uris(dataset: Dataset) -> list[str]:
    """The URIs that prepare reads."""
    sources = [dataset.uri] if dataset.uri else [source.uri for source in dataset.sources or [] if source.weight > 0]
    return sources + ([dataset.validation.uri] if dataset.validation and dataset.validation.uri else [])


def collect_egress(
    asked: EgressMode, prepare: Mapping[str, Any], train: Mapping[str, Any], publish: Mapping[str, Any]
) -> Egress:
    """The proofs of the three steps (see cloister_trainer.egress) with one sentence over all of them.

    Of n processes, where control answered c and the canary refused r, both are certain for at least c + r - n.
    """
    proofs = [dict(proof) for proof in (prepare, train, publish)]
    steps = dict(zip(("prepare", "train", "publish"), proofs, strict=True))
    if asked is EgressMode.OPEN:
        return Egress(**steps, summary="Open: network.egress Open let the job's pods reach what the network allows.")
    if not any(proofs):
        return Egress(**steps, summary="Not proven: no process dialled the operator's control and canary addresses.")
    processes, control, canary = (
        sum(int(proof.get(key, 0)) for proof in proofs) for key in ("processes", "controlAnswered", "canaryRefused")
    )
    missing = [name for name, proof in steps.items() if not proof]
    partly = f"; nothing was recorded for {', '.join(missing)}" if missing else ""
    proven = max(0, control + canary - processes)
    summary = f"{proven} of {processes} processes: control answered, canary refused{partly}."
    return Egress(**steps, summary=summary)
