"""A model folder as people really have it: what is read, what is trained on, what is ignored, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import RunSettings
from cloister_trainer.model.config import check_config, check_not_quantised, parse_config
from cloister_trainer.model.families import FAMILIES, Family
from cloister_trainer.model.fingerprint import fingerprint
from cloister_trainer.model.grok_layout import PICKLED, holds_published_pickles
from cloister_trainer.model.headers import Header, header_digest, read_headers
from cloister_trainer.model.license import find_license
from cloister_trainer.model.small_files import (
    CONFIG,
    INDEX,
    SINGLE_FILE,
    TOKENIZER_KINDS,
    Sorted,
    described,
    fetch_small_files,
    sort_listing,
)
from cloister_trainer.model.tensors import TensorInfo, layer_of, live_tensors
from cloister_trainer.records import ListedFile, ModelRecord
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import MissingBucket, MissingObject, ObjectInfo, Storage

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NAMED_FILES = 20


@dataclass(frozen=True)
class InspectedModel:
    """A model folder that can be trained on."""

    record: ModelRecord
    config: dict[str, Any]
    """config.json."""
    folder: Path
    """The small files only."""
    tensors: dict[str, TensorInfo]
    """By the checkpoint's names."""


def inspect_model(
    storage: Storage,
    uri: str,
    scratch: Path,
    stated_license: str | None,
    settings: RunSettings,
    reporter: Reporter,
) -> InspectedModel:
    """Look at the model folder `uri` without reading its weights; small files are written to `scratch`.

    Raises ModelNotFound when nothing is there, ModelUnsupported when it cannot be trained on, LicenseUnknown and
    LicenseNotAllowed.
    """
    uri = uri.rstrip("/")
    listing = _list(storage, uri)
    divided = sort_listing(listing)
    names = {info.name for info in listing}
    _check_complete(uri, divided, names)
    small_files = fetch_small_files(storage, divided.small, scratch)
    config = parse_config((scratch / CONFIG).read_bytes(), f"{uri}/{CONFIG}")
    check_config(config, f"{uri}/{CONFIG}")
    weights = _weight_files(scratch, uri, divided)
    headers = read_headers(storage, weights)
    tensors = _all_tensors(headers, scratch, uri)
    check_not_quantised(tensors, uri)
    family = FAMILIES[config["model_type"]]
    _check_agreement(config, family, tensors, uri)
    ignored = described(info for info in divided.rest if info not in weights)
    if ignored:
        reporter.say(f"Ignored in {uri}: {_some(ignored)}.")
    listed = [ListedFile(name=info.name, size=info.size, etag=info.etag) for info in weights]
    digest = header_digest(headers)
    architectures = config.get("architectures") or [""]
    record = ModelRecord(
        uri=uri,
        model_type=config["model_type"],
        architecture=architectures[0],
        small_files=small_files,
        weight_files=listed,
        header_digest=digest,
        fingerprint=fingerprint(listed, small_files, digest),
        ignored_files=ignored,
        base_parameters=_base_parameters(config, family, tensors),
        license=find_license(scratch, small_files, family, stated_license, settings),
        position_limit=config["max_position_embeddings"],
    )
    return InspectedModel(record, config, scratch, tensors)


def _list(storage: Storage, uri: str) -> list[ObjectInfo]:
    try:
        listing = storage.list(uri)
    except (MissingBucket, MissingObject) as error:
        raise CloisterError(FailureReason.MODEL_NOT_FOUND, error.message) from None
    if not listing:
        raise CloisterError(
            FailureReason.MODEL_NOT_FOUND,
            f"There is nothing at {uri}. Correct model.uri, or upload the model's folder there.",
        )
    if len(listing) == 1 and uri.rstrip("/").endswith("/" + listing[0].name) and listing[0].uri == uri:
        raise CloisterError(
            FailureReason.MODEL_NOT_FOUND,
            f"{uri} is a file. model.uri names the model's folder, with config.json, tokenizer and safetensors files.",
        )
    return listing


def _check_complete(uri: str, divided: Sorted, names: set[str]) -> None:
    if holds_published_pickles(names):
        raise _unsupported(f"{uri} {PICKLED}")
    if CONFIG not in names:
        below = sorted({name.rpartition("/")[0] for name in names if name.endswith("/" + CONFIG)})
        hint = f" There is one in {uri}/{below[0]}: is that the model?" if below else ""
        raise _unsupported(f"{uri} has no {CONFIG}.{hint} Upload the whole folder in Hugging Face format.")
    if INDEX not in names and SINGLE_FILE not in names:
        pickles = [info for info in divided.rest if info.name.endswith(PICKLES) and "/" not in info.name]
        if pickles:
            raise _unsupported(
                f"{uri} has its weights as pickles only ({_some(described(pickles))}), which can run code when they "
                "are loaded. Convert them once on a trusted machine: AutoModelForCausalLM.from_pretrained(…)"
                ".save_pretrained(…) writes safetensors."
            )
        found = described(info for info in divided.rest)
        raise _unsupported(
            f"{uri} has neither {INDEX} nor {SINGLE_FILE}"
            f"{f'; there are {_some(found)}' if found else ''}. "
            "Upload the weights as safetensors in Hugging Face format."
        )
    if not any(names.issuperset(kind) for kind in TOKENIZER_KINDS):
        kinds = ", ".join(" with ".join(kind) for kind in TOKENIZER_KINDS)
        raise _unsupported(f"{uri} has no tokenizer: one of {kinds} was expected. Upload the model's tokenizer files.")


def _weight_files(folder: Path, uri: str, divided: Sorted) -> list[ObjectInfo]:
    """The files that the index names, or the single file."""
    present = {info.name: info for info in divided.rest}
    if not (folder / INDEX).exists():
        return [present[SINGLE_FILE]]
    named = sorted(set(_weight_map(folder, uri).values()))
    for name in named:
        if not name.endswith(".safetensors") or PurePosixPath(name).name != name:
            raise _unsupported(
                f"{uri}/{INDEX} names {name!r:.100}, which is not a safetensors file beside it. Upload the model's own."
            )
    missing = [name for name in named if name not in present]
    if missing:
        raise _unsupported(
            f"{uri}/{INDEX} names {len(named)} files, of which {len(missing)} are not there: {_some(missing)}. "
            "Upload them."
        )
    return [present[name] for name in named]


def _weight_map(folder: Path, uri: str) -> dict[str, str]:
    """Tensor name to file name, as the index has it."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        weight_map = index["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError):
        weight_map = None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _unsupported(f"{uri}/{INDEX} is not JSON with a weight_map of tensor names. Upload the model's own.")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise _unsupported(f"{uri}/{INDEX} maps tensors to something else than file names. Upload the model's own.")
    return weight_map


def _all_tensors(headers: list[Header], folder: Path, uri: str) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise _unsupported(
                f"{uri}/{header.name} holds {min(twice)}, which another file holds too. Upload it again."
            )
        tensors |= header.tensors
    if (folder / INDEX).exists():
        lost = sorted(_weight_map(folder, uri).keys() - tensors.keys())
        if lost:
            raise _unsupported(
                f"{uri}/{INDEX} names {len(lost)} tensors that its files do not hold: {_some(lost)}. "
                "Upload the model again, with files and index of the same version."
            )
    return tensors


def _check_agreement(config: dict[str, Any], family: Family, tensors: dict[str, TensorInfo], uri: str) -> None:
    """config.json and the headers must describe the same model."""
    live = live_tensors(family, config["num_hidden_layers"], tensors)
    expected = (config["vocab_size"], config["hidden_size"])
    found = live.parameters.get("model.embed_tokens.weight")
    if found is None:
        raise _unsupported(
            f"The weights at {uri} hold no model.embed_tokens.weight: they are not those of a "
            f"{config['model_type']} model in Hugging Face format."
        )
    if found != expected:
        raise _unsupported(
            f"{uri}/{CONFIG} says vocab_size {expected[0]} and hidden_size {expected[1]}, but "
            f"model.embed_tokens.weight has shape {list(found)}. Upload config and weights of the same model."
        )
    present = {place[0] for name in live.parameters if (place := layer_of(name)) and place[1] in _linear(family)}
    absent = sorted(set(range(config["num_hidden_layers"])) - present)
    if absent:
        raise _unsupported(
            f"{uri}/{CONFIG} says num_hidden_layers {config['num_hidden_layers']}, but the weights hold no "
            f"{family.title} attention for layer {absent[0]}. Upload config and weights of the same model."
        )


def _linear(family: Family) -> set[str]:
    return {f"{name}.weight" for name in family.attention}


def _base_parameters(config: dict[str, Any], family: Family, tensors: dict[str, TensorInfo]) -> int:
    """Parameters that transformers loads: all but the layers beyond num_hidden_layers."""
    unused = set(live_tensors(family, config["num_hidden_layers"], tensors).unused)
    return sum(info.parameters for name, info in tensors.items() if name not in unused)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
    return ", ".join(names[:NAMED_FILES]) + more


def _unsupported(sentence: str) -> CloisterError:
    return CloisterError(FailureReason.MODEL_UNSUPPORTED, sentence)
