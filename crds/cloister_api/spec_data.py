"""What a job reads: the model and the dataset."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cloister_api.base import (
    ApiEnum,
    ApiModel,
    ModelUri,
    Name,
    Quantity,
    Rule,
    ShortText,
    StoreUri,
    at_most_one,
    exactly_one,
)


class ChatTemplate(ApiModel):
    """The Jinja chat template that renders messages into text, in place of the model's own."""

    uri: ModelUri | None = None
    """A file with the template, for example s3://models/templates/chatml.jinja; or use inline."""
    inline: Annotated[str, Field(min_length=1, max_length=65536)] | None = None
    """The template itself, at most 65536 characters; or use uri."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.uri) != has(self.inline)",
            "chatTemplate takes exactly one of uri and inline",
            exactly_one("uri", "inline"),
        ),
    )


class ModelCache(ApiModel):
    """Where the weights lie on a node while it trains. Absent: an emptyDir, counted in the pod's ephemeral-storage."""

    size: Quantity | None = None
    """Size of an ephemeral volume made for each worker pod, for example 200Gi; or use claimName."""
    storage_class_name: Name | None = None
    """StorageClass of the ephemeral volume. Absent: the cluster's default class."""
    claim_name: Name | None = None
    """An existing PersistentVolumeClaim in the job's namespace, so that weights are fetched once for many attempts and
    jobs; or use size."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.size) != has(self.claimName)",
            "cache takes exactly one of size (an ephemeral volume) and claimName (an existing claim)",
            exactly_one("size", "claim_name"),
        ),
        Rule(
            "!has(self.storageClassName) || has(self.size)",
            "cache.storageClassName goes with cache.size",
            lambda cache: cache.storage_class_name is None or cache.size is not None,
        ),
    )


class Model(ApiModel):
    """The base model: a folder in Hugging Face format with safetensors weights."""

    uri: ModelUri
    """The model's folder: s3://bucket/prefix, pvc://claim/path (read-only), or file:///path (local runs only)."""
    license: ShortText | None = None
    """The licence's identifier, for example llama3.1 or apache-2.0. Absent: found in the model's files (a known licence
    text, the model card, the family), and the job is refused with the line to add when nothing is found. A value that
    the model's files contradict is refused."""
    chat_template: ChatTemplate | None = None
    """Jinja template that renders messages into text. Absent: the model's own. Base models have none, and prepare says
    so when the dataset needs one."""
    cache: ModelCache | None = None
    """Where the weights lie on a node. Absent: an emptyDir counted in ephemeral-storage."""


class DatasetFormat(ApiEnum):
    """How a row is written."""

    AUTO = "Auto"
    MESSAGES = "Messages"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"
    SHARE_GPT = "ShareGPT"
    ALPACA = "Alpaca"


class TrainOn(ApiEnum):
    """Which tokens carry loss."""

    COMPLETIONS = "Completions"
    LAST_TURN = "LastTurn"
    ALL = "All"


class TooLong(ApiEnum):
    """What becomes of an example longer than training.maxLength."""

    TRUNCATE = "Truncate"
    DROP = "Drop"
    SPLIT = "Split"
    FAIL = "Fail"


class DatasetSource(ApiModel):
    """One of several weighted sources."""

    uri: ModelUri
    """A .jsonl, .json or .parquet file, or a prefix: all such files under it (s3://, pvc://, or file:// in local
    runs)."""
    weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How often each example of this source occurs in an epoch: 1 once, 2 twice, 0.5 every second example, 0 never.
    Which examples a fraction takes is chosen by content hash, so adding rows changes none of the choices."""
    max_examples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """At most this many examples of this source, chosen by content hash before identical examples of other sources are
    left out. Absent: all."""


class DatasetColumns(ApiModel):
    """The dataset's own column names, where they differ from the format's usual ones."""

    messages: ShortText | None = None
    """The list of messages (Messages, ShareGPT). Absent: messages, or conversations for ShareGPT."""
    prompt: ShortText | None = None
    """The prompt (PromptCompletion). Absent: prompt."""
    completion: ShortText | None = None
    """The completion (PromptCompletion). Absent: completion."""
    text: ShortText | None = None
    """The text (Text). Absent: text."""
    instruction: ShortText | None = None
    """The instruction (Alpaca). Absent: instruction."""
    input: ShortText | None = None
    """The optional input (Alpaca). Absent: input."""
    output: ShortText | None = None
    """The output (Alpaca). Absent: output."""
    tools: ShortText | None = None
    """Tool definitions handed to the chat template (Messages). Absent: tools."""


class Validation(ApiModel):
    """Held-out examples. The split is by content hash: duplicates lie on one side, and adding rows moves none."""

    fraction: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Fraction of the examples held out, for example 0.05; 0 holds out none. Absent, without uri: 5 % when there are at
    least 200 rows."""
    uri: ModelUri | None = None
    """A separate file or prefix with validation rows in the dataset's format; or use fraction."""
    max_examples: Annotated[int, Field(ge=1, le=100000)] = 500
    """At most this many validation examples, chosen by content hash."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.fraction) && has(self.uri))",
            "validation takes at most one of fraction and uri",
            at_most_one("fraction", "uri"),
        ),
    )


class Dataset(ApiModel):
    """The training data."""

    uri: ModelUri | None = None
    """A .jsonl, .json or .parquet file, or a prefix: all such files under it (s3://, pvc://, or file:// in local runs);
    or use sources."""
    sources: Annotated[list[DatasetSource], Field(min_length=1, max_length=64)] | None = None
    """Several weighted sources in one epoch, in place of uri."""
    format: DatasetFormat = DatasetFormat.AUTO
    """How rows are written: Messages (chat messages, with tool calls), PromptCompletion, Text, ShareGPT or Alpaca. Auto
    detects it from the columns and says what it found."""
    columns: DatasetColumns | None = None
    """Column names that differ from the format's usual ones."""
    system_prompt: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """A system message put before every conversation that has none. Absent: none is put."""
    train_on: TrainOn = TrainOn.COMPLETIONS
    """Which tokens carry loss: Completions, every assistant turn or completion; LastTurn, only the last one; All,
    prompts too."""
    too_long: TooLong = TooLong.TRUNCATE
    """What becomes of examples longer than training.maxLength. Truncate cuts them, never leaving an example without a
    trained token (the plan warns above 1 %); Drop leaves them out; Split makes several examples, for format Text only;
    Fail refuses the dataset."""
    deduplicate: bool = True
    """Keep only one of identical examples: that of the source with the largest weight, the first among equals."""
    validation: Validation | None = None
    """Held-out examples for evaluation. Absent: 5 % of the examples when there are at least 200 rows, else none."""
    cache_uri: StoreUri | None = None
    """Where tokens are kept by content, so that the jobs of a sweep tokenise once. Absent: tokens lie in the run folder
    and are deleted with it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.uri) != has(self.sources)",
            "dataset takes exactly one of uri and sources",
            exactly_one("uri", "sources"),
        ),
        Rule(
            "self.tooLong != 'Split' || self.format == 'Text'",
            "dataset.tooLong Split needs dataset.format Text",
            lambda dataset: dataset.too_long != TooLong.SPLIT or dataset.format == DatasetFormat.TEXT,
        ),
        Rule(
            "!has(self.sources) || self.sources.exists(source, source.weight > 0.0)",
            "dataset.sources needs at least one source with a weight above 0",
            lambda dataset: dataset.sources is None or any(source.weight > 0 for source in dataset.sources),
        ),
    )
