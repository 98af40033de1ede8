"""README.md: the model card, with Hugging Face's front matter and the lines that serve the adapter."""

from __future__ import annotations

import json

from jinja2 import Environment, PackageLoader, StrictUndefined

from cloister_api.spec_cluster import Provenance
from cloister_api.spec_training import Quantization
from cloister_trainer.model.cost import COMPUTE_TYPES
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.license_terms import terms_of
from cloister_trainer.publish.facts import RunFacts
from cloister_trainer.publish.gate import relative_improvement
from cloister_trainer.publish.obligations import distributed_name, obligations
from cloister_trainer.records import LicenseFinding

CARD_FILE = "README.md"
ORIGIN_HEADING = "## Licence and origin"
PLOT_FILE = "loss.svg"
VLLM_DEFAULT_RANK = 16
"""The largest rank that vLLM takes when it is told nothing."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank takes."""
HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "openrail", "bigscience-openrail-m", "bigcode-openrail-m", "deepseek", "gemma", "llama2"),
    *("llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "unlicense", "isc", "gpl-3.0", "agpl-3.0", "mpl-2.0"),
)
"""Identifiers that the Hugging Face Hub knows; any other is written as `other` with its name."""


_ENVIRONMENT = Environment(
    loader=PackageLoader("cloister_trainer.publish", "."),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701  (Markdown; values pass through `cell` and `front_matter`)
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_card(facts: RunFacts) -> str:
    """The model card as Markdown."""
    finding, spec = facts.plan.model.license, facts.run.spec
    license_id, terms = finding.id.lower(), terms_of(finding.id)
    known = license_id in HUB_LICENSES
    context = {
        "facts": facts,
        "license": json.dumps(license_id if known else "other"),
        "license_name": None if known else json.dumps(license_id),
        "base_model": json.dumps(facts.base_name),
        "base_model_cell": cell(facts.base_name),
        "nf4": spec.lora.quantization is Quantization.NF4,
        "compute_type": COMPUTE_TYPES[spec.training.precision],
        "terms": terms,
        "obligations": [cell(sentence) for sentence in obligations(finding, facts.run.name)],
        "distributed_name": distributed_name(terms, facts.run.name) if terms and terms.name_begins_with else None,
        "improvement": relative_improvement(facts.checks),
        "vllm_default_rank": VLLM_DEFAULT_RANK,
        "vllm_rank": next((rank for rank in VLLM_RANKS if rank >= facts.adapter.max_rank), VLLM_RANKS[-1]),
        "served_from_s3": facts.run.output.folder.startswith("s3://"),
        "plot": PLOT_FILE,
        "own_class": FAMILIES[facts.plan.model.model_type].own_class,
        "origin_heading": ORIGIN_HEADING,
        "origin_rows": origin_rows(
            finding,
            facts.checks.base_digest,
            facts.plan.data.digest,
            facts.run.spec.provenance,
            facts.egress.summary,
        ),
        "cell": cell,
    }
    return _ENVIRONMENT.get_template("card.md.j2").render(context)


def origin_rows(
    license_facts: LicenseFinding, base_digest: str, dataset_digest: str, provenance: Provenance | None, egress: str
) -> list[str]:
    """The rows of the card's table of licence and origin; `cloister verify` compares them with the manifest."""
    evidence = license_facts.evidence + (f", {cell(license_facts.file)}" if license_facts.file else "")
    stated = provenance.to_api() if provenance else {}
    return [
        f"| Base model's licence | {cell(license_facts.id)} (evidence: {evidence}) |",
        f"| Base model's digest | sha256 {base_digest} |",
        f"| Dataset's digest | sha256 {dataset_digest} |",
        *(f"| {name} (stated) | {cell(value)} |" for name, value in stated.items()),
        f"| Network access | {egress} |",
    ]


def read_origin_rows(card: str) -> list[str]:
    """What `origin_rows` was when `card` was written."""
    lines = card.partition(f"\n{ORIGIN_HEADING}\n")[2].split("\n")
    return [line for line in lines if line.startswith("| ") and line != "| | |"]


def cell(text: object) -> str:
    """`text` on one line, with what Markdown and HTML would read as markup escaped."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in "\\`*_[]|" else character for character in flat)
