"""The adapter: LoRA layers put into a base model, their start values, and the files that stock PEFT reads."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Lora
from cloister_trainer.model.targets import Targets
from cloister_trainer.train.randomness import DropoutKey, initial_a

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_REWRITTEN = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


def add_lora(model: Any, targets: Targets, lora: Lora, seed: int) -> Any:
    """Put an adapter on exactly the weights that `targets` names, and return the PeftModel.

    A and B are float32 whatever the base's type, drawn by (seed, parameter name); everything else is frozen. Raises
    CloisterError (SELF_TEST_FAILED) unless exactly what was asked for got an adapter.
    """
    from peft import LoraConfig, get_peft_model

    from cloister_trainer.train.lora_layers import add_dropout, make_lean

    modules, parameters = _as_peft_finds_them(model, targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        target_modules=_shortest_names(model, modules),
        target_parameters=parameters or None,
        rank_pattern=_rank_pattern(targets, parameters, lora.rank),
        use_rslora=lora.rank_stabilized,
    )
    with warnings.catch_warnings():
        # PEFT looks for rank_pattern among target_modules only; check_targets looks at every rank.
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
        peft_model = get_peft_model(model, config)
    check_targets(peft_model, targets)
    make_lean(peft_model)
    _initialise(peft_model, seed)
    if lora.dropout > 0:
        add_dropout(peft_model, lora.dropout, DropoutKey(seed))
    return peft_model


def _as_peft_finds_them(model: nn.Module, targets: Targets) -> tuple[list[str], list[str]]:
    """The targets as PEFT's target_modules and target_parameters.

    In models with routed experts PEFT 0.21 reads `gate_proj` and the like, however they are written, as the experts',
    which transformers 5 has fused: there a dense or shared MLP's linear module is named by its weight.
    """
    has_experts = any(name.endswith(".experts") for name, _ in model.named_modules())
    rewritten = [name for name in targets.modules if has_experts and name.rsplit(".", 1)[-1] in _REWRITTEN]
    modules = [name for name in targets.modules if name not in set(rewritten)]
    return modules, [*targets.parameters, *(f"{name}.weight" for name in rewritten)]


def _rank_pattern(targets: Targets, parameters: list[str], usual: int) -> dict[str, int]:
    """PEFT's rank_pattern for weights of another rank than usual: regular expressions on the names it matches."""
    by_weight = {name.removesuffix(".weight") for name in parameters if name.endswith(".weight")}
    unusual = {name: rank for name, rank in targets.ranks.items() if rank != usual}
    return {re.escape(f"{name}.weight" if name in by_weight else name): rank for name, rank in unusual.items()}


def _shortest_names(model: nn.Module, modules: Sequence[str]) -> list[str]:
    """What PEFT resolves to exactly `modules`: last parts of names, as serving tools read them, where they suffice."""
    wanted = set(modules)
    last_parts = {name.rsplit(".", 1)[-1] for name in wanted}
    chosen = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in last_parts}
    return sorted(last_parts) if chosen == wanted else sorted(wanted)


def _initialise(peft_model: nn.Module, seed: int) -> None:
    with torch.no_grad():
        for name, parameter in trainable_parameters(peft_model).items():
            if ".lora_A." in name:
                parameter.copy_(initial_a(name, (parameter.shape[0], parameter.shape[1]), seed))
            else:
                parameter.zero_()


def check_targets(peft_model: nn.Module, targets: Targets) -> None:
    """Raise CloisterError (SELF_TEST_FAILED) unless exactly the targets are adapted, and nothing else is trainable.

    PEFT rewrites the targets of some mixture-of-experts models without a word.
    """
    from cloister_trainer.train.lora_layers import ADAPTER, lora_layers

    wanted = {name: targets.ranks[name] for name in (*targets.modules, *targets.parameters)}
    found = {name: layer.r[ADAPTER] for name, layer in lora_layers(peft_model).items()}
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or surplus:
        raise CloisterError(
            FailureReason.SELF_TEST_FAILED,
            f"Self-test targets: the adapter lies on {len(found)} weights, but {len(wanted)} were asked for. Missing: "
            f"{_some(missing)}. Not asked for: {_some(surplus)}. Name the modules in lora.targets.modules.",
        )
    other_rank = sorted(name for name in wanted if wanted[name] != found[name])
    if other_rank:
        raise CloisterError(
            FailureReason.SELF_TEST_FAILED,
            f"Self-test targets: {_some(other_rank)} got another rank than lora.rank and lora.rankOverrides say.",
        )
    stray = [name for name, p in peft_model.named_parameters() if p.requires_grad and ".lora_" not in name]
    if stray:
        raise CloisterError(
            FailureReason.SELF_TEST_FAILED, f"Self-test targets: base weights are not frozen: {_some(stray)}."
        )


def _some(names: Sequence[str]) -> str:
    return "none" if not names else ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def trainable_parameters(peft_model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters in the model's order, by the names of PEFT's files (without the adapter's name)."""
    return {saved_name(name): parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad}


def saved_name(name: str) -> str:
    """A parameter's name in adapter_model.safetensors: `….lora_A.default.weight` is written `….lora_A.weight`."""
    return name.replace(".default.", ".")


def load_adapter_state(peft_model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Set the adapter's parameters from `state`; `source` is named when names or shapes differ (ADAPTER_INVALID)."""
    parameters = trainable_parameters(peft_model)
    unequal = sorted(parameters.keys() ^ state.keys()) or sorted(
        name for name, parameter in parameters.items() if parameter.shape != state[name].shape
    )
    if unequal:
        raise CloisterError(
            FailureReason.ADAPTER_INVALID,
            f"The adapter at {source} does not fit this job's lora settings: {len(unequal)} tensors differ in name or "
            f"shape, {unequal[0]} among them. Use the rank and targets that it was trained with.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def save_adapter(peft_model: Any, state: Mapping[str, Tensor], folder: Path, base_model_uri: str) -> None:
    """Write adapter_model.safetensors (float32) and adapter_config.json for stock PEFT; the same bytes every time."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = peft_model.active_peft_config.to_dict()
    config |= {"base_model_name_or_path": base_model_uri, "inference_mode": True}
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.items())}
    (folder / CONFIG_FILE).write_text(json.dumps(ordered, indent=2) + "\n")
