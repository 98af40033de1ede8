"""Where a job reads and writes. What it writes must not lie among what it reads: it would become input itself."""

from __future__ import annotations

from cloister_api.job import FineTuneJobSpec
from cloister_api.problems import Problem
from cloister_api.yaml_tree import Path, dotted


def places_read(spec: FineTuneJobSpec) -> dict[Path, str]:
    """The URIs that the result depends on, by their field."""
    found: dict[Path, str | None] = {("spec", "model", "uri"): spec.model.uri}
    if spec.model.chat_template is not None:
        found["spec", "model", "chatTemplate", "uri"] = spec.model.chat_template.uri
    found["spec", "dataset", "uri"] = spec.dataset.uri
    for number, source in enumerate(spec.dataset.sources or []):
        found["spec", "dataset", "sources", number, "uri"] = source.uri
    if spec.dataset.validation is not None:
        found["spec", "dataset", "validation", "uri"] = spec.dataset.validation.uri
    if spec.lora.init_from is not None:
        found["spec", "lora", "initFrom", "uri"] = spec.lora.init_from.uri
    return {field: uri for field, uri in found.items() if uri is not None}


def places_written(spec: FineTuneJobSpec) -> dict[Path, str]:
    """The prefixes below which a run writes, by their field."""
    found: dict[Path, str | None] = {
        ("spec", "output", "uri"): spec.output.uri,
        ("spec", "storage", "runUri"): spec.storage.run_uri,
        ("spec", "dataset", "cacheUri"): spec.dataset.cache_uri,
    }
    return {field: uri for field, uri in found.items() if uri is not None}


def misplaced(spec: FineTuneJobSpec) -> list[Problem]:
    """One problem for each prefix that is written and lies below, or is, one that is read."""
    return [
        Problem(
            written,
            f"lies in {dotted(read)}: what the job writes there would change what it reads; choose a place outside",
        )
        for written, prefix in places_written(spec).items()
        for read, uri in places_read(spec).items()
        if _parts(prefix)[: len(_parts(uri))] == _parts(uri)
    ]


def _parts(uri: str) -> list[str]:
    return [part for part in uri.split("/") if part]
