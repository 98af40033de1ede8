"""What prepare, train and publish leave for each other in the run folder: plan.json, the tokens' index, checks.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cloister_api.base import ApiModel
from cloister_api.status import ExactMatch, GateResult


class FileDigest(ApiModel):
    """A file by name, size in bytes and sha256 (hexadecimal)."""

    name: str
    size: int
    sha256: str


class ListedFile(ApiModel):
    """A file as its store lists it."""

    name: str
    size: int
    etag: str
    """The store's ETag; for file and pvc a small file's sha256, a larger one's modification time and size."""


class LicenseFinding(ApiModel):
    """The base model's licence and what proves it."""

    id: str
    evidence: Literal["LicenseText", "ModelCard", "Family", "Stated"]
    file: str | None = None
    sha256: str | None = None
    files: list[str] = []
    """Licence and notice files in the model's folder that publish copies."""


class ModelRecord(ApiModel):
    """The base model as prepare found it."""

    uri: str
    model_type: str
    architecture: str
    small_files: list[FileDigest]
    """config.json, tokenizer, chat template, licence files: fetched and hashed by prepare."""
    weight_files: list[ListedFile]
    """The safetensors files that the index (or the single file) names; fetched by train."""
    header_digest: str
    """sha256 over the safetensors headers in order of file name."""
    fingerprint: str
    """sha256 over names, sizes, ETags, config, tokenizer files and headers."""
    ignored_files: list[str]
    base_parameters: int
    license: LicenseFinding
    position_limit: int
    """Longest sequence that the model's configuration allows, in tokens."""


class TokenShard(ApiModel):
    """One safetensors file of examples.

    Tensors: `tokens` uint32 [sum of lengths]; `offsets` int64 [examples + 1]; `labelSpans` int32 [spans, 3] rows of
    (example in shard, start, end within the example; end exclusive), sorted; `repeats` uint8 [examples], how often the
    example occurs in an epoch (training shards only).
    """

    file: FileDigest
    examples: int
    tokens: int
    trained_tokens: int


class TokensIndex(ApiModel):
    """index.json of a tokens folder, written last: its presence means that the folder is complete."""

    version: Literal[1] = 1
    digest: str
    """sha256 over the rows' content in order, tokenizer, template and options: the dataset's content digest. The rows
    count, not the files that they lie in."""
    train: list[TokenShard]
    validation: list[TokenShard]
    epoch_examples: int
    """Examples in an epoch, repeats counted."""
    epoch_tokens: int
    epoch_trained_tokens: int
    validation_examples: int
    longest: int
    """Tokens of the longest stored example."""
    largest_id: int = 0
    """The largest token id in the shards."""
    stop_token_id: int | None = None
    """The token that ends an assistant turn and is trained."""
    pad_token_id: int
    samples: list[SampleRow] = []
    """Held-out rows for evaluation.samples; they lie beside the tokens and nowhere else."""
    report: dict[str, Any] = {}
    """The data report: lengths, truncated, duplicates, overlap, detected format and mapping."""


class SampleRow(ApiModel):
    """A held-out row to be answered: the prompt's token ids, and the answer's text as the dataset has it."""

    prompt: list[int]
    answer: str


class MemoryPart(ApiModel):
    """One part of the memory plan."""

    name: str
    bytes: int
    note: str = ""


class TrainPlan(ApiModel):
    """What prepare chose for train."""

    zero_stage: int
    micro_batch_tokens: int
    gradient_checkpointing: bool
    packing: bool
    max_length: int
    total_steps: int
    steps_per_epoch: int
    target_modules: list[str]
    """Full names of the adapted modules, in model order."""
    trainable_parameters: int
    hpz_partition: int | None = None
    """Stage 3 over several nodes: devices among which each node's second copy of the base is split (ZeRO++ hpZ)."""
    gpu_memory: list[MemoryPart]
    host_memory: list[MemoryPart]
    local_disk: list[MemoryPart]
    gpu_memory_limit: int | None = None
    """Bytes of one device; None on CPUs."""
    warnings: list[str] = []


class PlanFile(ApiModel):
    """plan.json: everything that prepare found and chose."""

    version: Literal[1] = 1
    model: ModelRecord
    tokens_uri: str
    data: TokensIndex
    """Without its samples: plan.json stays when the tokens are deleted, and no row may stay with it."""
    plan: TrainPlan
    chat_template: FileDigest | None = None
    """The template that the job gives in place of the model's own."""
    initial_adapter: str | None = None
    """Fingerprint of the adapter that lora.initFrom names, as prepare found it."""
    egress: dict[str, Any] = {}
    """prepare's egress proof; empty in local runs."""


class EvaluationPoint(ApiModel):
    """A measurement on the validation examples: mean loss per trained token."""

    step: int
    loss: float


class SampleAnswer(ApiModel):
    """A held-out row answered greedily before and after training."""

    prompt: str
    expected: str
    before: str
    after: str


class Checks(ApiModel):
    """checks.json beside the staged adapter: what train measured and proved; publish reads it."""

    version: Literal[1] = 1
    step: int
    total_steps: int
    best_step: int
    base_digest: str
    """sha256 over the base model's weight files, by name."""
    weight_files: list[FileDigest] = []
    adapter: FileDigest
    """adapter_model.safetensors as staged and read back."""
    adapter_config: FileDigest
    read_back_equal: bool
    """The staged adapter, read back from the store, equals the live one bit for bit."""
    frozen_unchanged: bool
    self_tests: dict[str, str]
    """Name of each start-up test and what it saw."""
    base_loss: float | None = None
    loss: float | None = None
    evaluations: list[EvaluationPoint] = []
    exact_match: ExactMatch | None = None
    samples: list[SampleAnswer] = []
    gate: GateResult = GateResult.NONE
    final_train_loss: float
    train_seconds: Annotated[float, Field(ge=0)]
    gpu_seconds: int = 0
    world_sizes: list[int] = []
    measured_memory: list[MemoryPart] = []
    versions: dict[str, str] = {}
    egress: dict[str, Any] = {}
    merged_files: list[FileDigest] = []
    plan: TrainPlan | None = None
    """The plan that train followed: on GPUs made again for the memory that was free."""
