"""What a rank reads: weights and tokens, brought to the node once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cloister_trainer.records import TokensIndex
from cloister_trainer.storage import FetchedModel, fetch_model
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.examples import Examples, download_tokens


@dataclass(frozen=True)
class Inputs:
    """On this node's disk."""

    model: FetchedModel
    train: Examples
    validation: Examples | None


def fetch_inputs(context: WorkerContext, beat: Callable[[], None]) -> Inputs:
    """Weights and tokens, fetched by one of the node's processes while the others wait."""
    plan = context.plan
    model = fetch_model(context.storage, plan.model, context.models, lambda _bytes: beat())
    tokens = context.scratch / "tokens" / content_key(plan.data)
    folder = download_tokens(context.storage, plan.tokens_uri, plan.data, tokens)
    return Inputs(
        model=model,
        train=Examples(folder, plan.data.train),
        validation=Examples(folder, plan.data.validation) if plan.data.validation_examples else None,
    )


def content_key(index: TokensIndex) -> str:
    """The name of a node's copy of the tokens: other shards are another folder."""
    digests = [shard.file.sha256 for shard in (*index.train, *index.validation)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
