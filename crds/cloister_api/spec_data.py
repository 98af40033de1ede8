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
    """A file with the template, for example s3://models/templates/chatml.jinja."""
    inline: Annotated[str, Field(min_length=1, max_length=65536)] | None = None
    """The template itself."""

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
    """Size of an ephemeral volume made for each pod, for example 200Gi."""
    storage_class_name: Name | None = None
    """StorageClass of the ephemeral volume. Absent: the cluster's default class."""
    claim_name: Name | None = None
    """An existing PersistentVolumeClaim, kept between attempts and jobs."""

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
    """The licence's identifier, for example llama3.1 or apache-2.0. Absent: found in the model's files, and the job is
    refused when nothing is found. A value that the model's files contradict is refused."""
    chat_template: ChatTemplate | None = None
    """Absent: the model's own template. Base models have none, and prepare says so."""
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
    """A .jsonl, .json or .parquet file, or a prefix whose files all belong to the source."""
    weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How often each example occurs in an epoch. With a fraction, which examples occur once more is chosen by content
    hash, so it never changes when rows are added."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """At most this many examples, chosen by content hash. Absent: all."""


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
    """Fraction of the examples held out; 0 holds out none."""
    uri: ModelUri | None = None
    """A separate file or prefix with validation rows, in the same format."""
    max_examples: Annotated[int, Field(ge=1, le=100000)] = 500
    """At most this many validation examples."""

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
    """A .jsonl, .json or .parquet file, or a prefix: all such files under it."""
    sources: Annotated[list[DatasetSource], Field(min_length=1, max_length=64)] | None = None
    """Several weighted sources, in place of uri."""
    format: DatasetFormat = DatasetFormat.AUTO
    """How rows are written. Auto detects it from the columns and says what it found."""
    columns: DatasetColumns | None = None
    """Column names that differ from the format's usual ones."""
    system_prompt: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """A system message put before every conversation that has none."""
    train_on: TrainOn = TrainOn.COMPLETIONS
    """Which tokens carry loss: every assistant turn, only the last one, or all tokens."""
    too_long: TooLong = TooLong.TRUNCATE
    """What becomes of examples longer than training.maxLength. Truncate never leaves an example without a trained
    token; Split is for Text only; Fail refuses the dataset."""
    deduplicate: bool = True
    """Keep only the first of identical examples."""
    validation: Validation | None = None
    """Absent: 5 % of the examples when there are at least 200, else none."""
    cache_uri: StoreUri | None = None
    """Where tokens are kept by content, so that a sweep tokenises once. Absent: in the run folder."""

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
    )
