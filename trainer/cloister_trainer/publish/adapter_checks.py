"""Checks of the staged adapter that need no base weights: stock PEFT must load it, and it must say something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.config import native_config, read_config
from cloister_trainer.publish.manifest import ADAPTER_FILE, AdapterFacts

if TYPE_CHECKING:
    from peft import PeftConfig

CONFIG_FILE = "adapter_config.json"
NAMED = 5
"""How many names a message lists before it only counts."""


def check_adapter(folder: Path, model_folder: Path) -> AdapterFacts:
    """Check adapter_model.safetensors and adapter_config.json in `folder` against config.json in `model_folder`.

    The base is built on the meta device, so that neither its size nor the adapter's matters: shapes are compared, and
    values are looked at tensor by tensor. Raises CloisterError(AdapterInvalid) naming the check.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    shapes = _shapes(folder / ADAPTER_FILE)
    _check_keys(config, shapes, model_folder)
    return _check_values(folder / ADAPTER_FILE)


def published_config(data: bytes, model_uri: str) -> bytes:
    """adapter_config.json as it is published.

    `base_model_name_or_path` becomes the last part of the model's URI, the name under which people know the model: what
    train wrote there may be a folder of its own machine, and neither PEFT nor an inference server can open s3://. The
    manifest and the model card have the whole URI. Raises CloisterError(AdapterInvalid) when another value is an
    absolute path.
    """
    config = json.loads(data)
    config["base_model_name_or_path"] = model_name(model_uri)
    config["revision"] = None
    for path in _absolute_paths(config):
        raise _invalid(f"{CONFIG_FILE} holds an absolute path in {path}, which means nothing on another machine")
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def model_name(model_uri: str) -> str:
    """The last part of a model's URI: `llama-3.1-8b-instruct` of `s3://models/llama-3.1-8b-instruct`."""
    return model_uri.rstrip("/").rsplit("/", 1)[-1]


def _absolute_paths(value: Any, where: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _absolute_paths(item, f"{where}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [found for item in value for found in _absolute_paths(item, where)]
    return [where] if isinstance(value, str) and value.startswith(("/", "file://")) else []


def _shapes(path: Path) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _invalid(f"{ADAPTER_FILE} is not a readable safetensors file ({error})") from error


def _check_keys(config: PeftConfig, shapes: dict[str, list[int]], model_folder: Path) -> None:
    """No missing and no unexpected tensor, all of the right shape, as stock PEFT sees it."""
    import torch
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    model_config = native_config(read_config(model_folder))
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
        model = PeftModel(base, config, low_cpu_mem_usage=True)
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    # No embedding is adapted. Left to itself PEFT looks for the base model's config.json on a hub, to see it.
    missing = sorted(set(get_peft_model_state_dict(model, save_embedding_layers=False)) - set(shapes))
    if missing:
        raise _invalid(f"{ADAPTER_FILE} lacks {_some(missing)}, which {CONFIG_FILE} and the model's config ask for")
    try:
        loaded = set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise _invalid(f"{ADAPTER_FILE} holds tensors of another shape: {_some(lines or [str(error)])}") from error
    if loaded.unexpected_keys:
        raise _invalid(f"{ADAPTER_FILE} holds {_some(loaded.unexpected_keys)}, which stock PEFT does not expect")


def _check_values(path: Path) -> AdapterFacts:
    """All values finite, not every B zero."""
    import torch
    from safetensors import safe_open

    parameters, max_rank, dtypes = 0, 0, set()
    zero_b, all_b = [], 0
    with safe_open(str(path), framework="pt") as tensors:
        names = sorted(tensors.keys())
        for name in names:
            tensor = tensors.get_tensor(name)
            if not bool(torch.isfinite(tensor).all()):
                raise _invalid(f"{ADAPTER_FILE}: {name} holds a value that is not a finite number")
            parameters += tensor.numel()
            dtypes.add(str(tensor.dtype).removeprefix("torch."))
            if "lora_A" in name:
                max_rank = max(max_rank, tensor.shape[0])
            if "lora_B" in name:
                all_b += 1
                zero_b += [] if bool(tensor.any()) else [name]
    if len(zero_b) == all_b:
        raise _invalid(f"{ADAPTER_FILE}: every matrix B is zero, so the adapter changes nothing")
    return AdapterFacts(
        tensors=len(names),
        parameters=parameters,
        dtypes=sorted(dtypes),
        max_rank=max_rank,
        zero_b_tensors=len(zero_b),
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _invalid(what: str) -> CloisterError:
    return CloisterError(FailureReason.ADAPTER_INVALID, f"The staged adapter cannot be published: {what}.")
