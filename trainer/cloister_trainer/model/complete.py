"""Whether a checkpoint holds every weight of its model: transformers draws what it lacks at random, and goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.config import native_config
from cloister_trainer.model.tensors import TensorInfo

NAMED_TENSORS = 3


def check_complete(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a checkpoint in which a weight of the model that `config` describes is not there, or has another size.

    Names meet as they do when the weights are loaded: by transformers' own conversions, routed experts fused, and one
    of two tied weights enough. Raises ModelUnsupported.
    """
    model = empty_model(config)
    expected = {name: prod(weight.shape) for name, weight in model.state_dict().items()}
    found = _found(model, tensors)
    twins: Mapping[str, str] = model.all_tied_weights_keys
    lacking = [
        name
        for name, size in expected.items()
        if (found[name] != size if name in found else twins.get(name) not in found)
    ]
    if lacking:
        raise incomplete(lacking)


def empty_model(config: Mapping[str, Any]) -> Any:
    """transformers' model with names and shapes but no weights. Raises ModelUnsupported where it makes none."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(native_config(config))
    except Exception as error:  # noqa: BLE001 - any class of error that a third party's model code raises
        raise CloisterError(
            FailureReason.MODEL_UNSUPPORTED,
            f"transformers cannot build the {config['model_type']} model that config.json describes "
            f"({type(error).__name__}: {str(error)[:200]}). Upload the model's own config.json.",
        ) from None


def incomplete(names: Sequence[str]) -> CloisterError:
    """The refusal of a checkpoint that lacks these weights of the live model."""
    more = f" and {len(names) - NAMED_TENSORS} more" if len(names) > NAMED_TENSORS else ""
    return CloisterError(
        FailureReason.MODEL_UNSUPPORTED,
        f"The weights lack {', '.join(names[:NAMED_TENSORS])}{more}, or hold another shape there than config.json "
        "says. Upload config and weights of the same model, all of its files.",
    )


def _found(model: Any, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Elements that the checkpoint has for each weight of the live model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    expected = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    renamings = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
    found: dict[str, int] = {}
    for stored, info in tensors.items():
        name, _ = rename_source_key(stored, renamings, converters, model.base_model_prefix, expected)
        if name not in expected:
            name = stored
        if name in expected:
            found[name] = found.get(name, 0) + info.parameters
    return found
