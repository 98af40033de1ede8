"""The adapter that training starts from: it must mean in this job what it meant where it was trained."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_api.run import canonical_json
from cloister_api.spec_training import AdapterSource, Lora
from cloister_trainer.model.targets import Targets
from cloister_trainer.storage import MissingObject, Storage

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

MORE_THAN_LORA: dict[str, str] = {
    "use_dora": "DoRA",
    "lora_bias": "a bias beside B",
    "modules_to_save": "whole modules trained beside the adapter",
    "trainable_token_indices": "trained embeddings",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "quantisation-aware groups of inputs (QA-LoRA)",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "fan_in_fan_out": "transposed weights",
}
"""Fields of adapter_config.json that, when set, make the adapter something else than W + scale * B A."""
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is; PiSSA, OLoRA and others take B A out of it."""


def adapter_fingerprint(storage: Storage, source: AdapterSource | None) -> str | None:
    """sha256 over adapter_config.json's digest and the weights' size and ETag; None for a new adapter.

    The URI alone does not say which weights lie there. Raises SpecInvalid when one of the two files is missing,
    StorageError.
    """
    if source is None:
        return None
    try:
        config = hashlib.sha256(storage.read(join(source.uri, CONFIG_FILE))).hexdigest()
        weights = storage.head(join(source.uri, WEIGHTS_FILE))
    except MissingObject as error:
        raise CloisterError(FailureReason.SPEC_INVALID, f"lora.initFrom.uri: {error.message}") from error
    return hashlib.sha256(canonical_json([config, weights.size, weights.etag]).encode()).hexdigest()


def check_initial_adapter(storage: Storage, lora: Lora, targets: Targets) -> None:
    """Refuse an adapter that this job's `lora` would read as another function: other ranks or scales, more than LoRA.

    Whether it has exactly the job's weights shows when it is loaded. Raises SpecInvalid with the lines to write,
    StorageError.
    """
    if lora.init_from is None:
        return
    uri = join(lora.init_from.uri, CONFIG_FILE)
    config = _parse(storage.read(uri), uri)
    _check_plain(config, uri)
    alphas, alpha = _pattern(config, "alpha_pattern", uri), config["lora_alpha"]
    ranks, rank = _pattern(config, "rank_pattern", uri), config["r"]
    for name, wanted in targets.ranks.items():
        found = _of_weight(ranks, name, rank)
        theirs = _scale(_of_weight(alphas, name, alpha), found, stabilized=bool(config.get("use_rslora")))
        ours = _scale(lora.alpha, wanted, stabilized=lora.rank_stabilized)
        if found != wanted:
            raise _invalid(f"{uri} gives {name} rank {found}, this job gives it rank {wanted}. {_advice(config)}")
        if not math.isclose(theirs, ours, rel_tol=1e-6):
            raise _invalid(
                f"{uri} scales the update of {name} by {theirs:g}, this job by {ours:g}: training would begin from "
                f"another function than the adapter's. {_advice(config)}"
            )


def _parse(data: bytes, uri: str) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _invalid(f"{uri} is not the configuration of a LoRA adapter. Name the folder of one that PEFT loads.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not _is_number(alpha):
        raise _invalid(f"{uri} has no whole number r with a number lora_alpha. Upload the adapter's own file.")
    return config


def _is_number(value: object) -> bool:
    """Not NaN and not infinite, which Python's JSON has too: no comparison would notice them."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _check_plain(config: Mapping[str, Any], uri: str) -> None:
    more = [words for field, words in MORE_THAN_LORA.items() if config.get(field)]
    if config.get("bias", "none") != "none":
        more.append("trained biases")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        more.append(f"a changed base (init_lora_weights {config['init_lora_weights']})")
    if more:
        raise _invalid(
            f"{uri} describes {', '.join(more)}, with which Cloister cannot go on. Start from a plain LoRA adapter, "
            "or take initFrom out for a new one."
        )


def _pattern(config: Mapping[str, Any], field: str, uri: str) -> dict[re.Pattern[str], float]:
    """Values for single weights: PEFT's keys are regular expressions on the end of a name, and the first wins."""
    found = config.get(field) or {}
    if not isinstance(found, dict) or any(not _is_number(value) or value <= 0 for value in found.values()):
        raise _invalid(f"{uri} has {field} that is not a mapping to numbers. Upload the adapter's own file.")
    try:
        return {re.compile(rf"(.*\.)?({key})$"): value for key, value in found.items()}
    except re.error as error:
        raise _invalid(f"{uri} has {field} with a key that is no regular expression: {error}.") from None


def _of_weight(pattern: Mapping[re.Pattern[str], float], name: str, usual: float) -> float:
    """The value for one weight; an MLP beside routed experts is named by its weight there."""
    for key, value in pattern.items():
        if key.match(name) or key.match(f"{name}.weight"):
            return value
    return usual


def _scale(alpha: float, rank: float, *, stabilized: bool) -> float:
    return alpha / math.sqrt(rank) if stabilized else alpha / rank


def _advice(config: Mapping[str, Any]) -> str:
    """The lines that continue the adapter as it is."""
    if config.get("alpha_pattern"):
        return "Its alpha_pattern gives single modules another alpha, which Cloister cannot continue."
    stabilized = "true" if config.get("use_rslora") else "false"
    others = ", and lora.rankOverrides as its rank_pattern says" if config.get("rank_pattern") else ""
    return (
        f"Continue it with lora.rank {config['r']}, lora.alpha {config['lora_alpha']:g}, "
        f"lora.rankStabilized {stabilized}{others}."
    )


def _invalid(sentence: str) -> CloisterError:
    return CloisterError(FailureReason.SPEC_INVALID, f"lora.initFrom.uri: {sentence}")
