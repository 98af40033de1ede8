"""docs/models.md: fresh, whole, and about the models as they were published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cloister_api.spec_training import TargetPreset
from cloister_trainer.model.advice import GPUS_PER_NODE
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.hardware import Hardware, inspected_model, least_hardware, usual_job
from cloister_trainer.model.license_terms import terms_of
from cloister_trainer.model.memory import plan_memory
from cloister_trainer.model.memory_parts import GIB, PlanInputs
from cloister_trainer.model.published import PUBLISHED, Published
from cloister_trainer.model.unsupported import UNSUPPORTED_MODELS, Unsupported
from cloister_trainer.models_page import PAGE, render_models

ROOT = Path(__file__).resolve().parents[2]
MODELS = [(model_type, published) for model_type, sizes in PUBLISHED.items() for published in sizes]
NAMED_BY_USERS = {
    "FlexOlmo 7x7B": "flex_olmo",
    "MiniMax-Text-01 and M1": "minimax",
    "MiniMax-M2": "minimax_m2",
    "Phi-4-mini": "phi3",
    "Kimi K2": "deepseek_v3",
    "Llama 3.1 8B": "llama",
    "Mixtral 8x7B": "mixtral",
}


@pytest.fixture(scope="module")
def page() -> str:
    return render_models()


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next of its level."""
    return page.split(f"\n## {heading}\n", maxsplit=1)[1].split("\n## ", maxsplit=1)[0]


def test_the_page_is_what_the_tables_generate(page: str) -> None:
    assert (ROOT / PAGE).read_text() == page, "run make generate"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_has_an_entry(model_type: str, page: str) -> None:
    entry = section(page, model_type)
    for fact in ("Adapted by the preset `Auto`", "Frozen", "Attention", "Packing", "Usual licences", "Tested with"):
        assert f"- {fact}" in entry
    assert "Unproven: " in entry and "Unproven: \n" not in entry
    assert PUBLISHED[model_type], "no published model says what hardware it takes"
    assert all(f"| {each.name} |" in entry for each in PUBLISHED[model_type])
    assert f"[{model_type}](#{model_type})" in section(page, "What can be trained")


@pytest.mark.parametrize(("name", "model_type"), NAMED_BY_USERS.items())
def test_a_model_that_users_named_is_found_in_the_first_table(name: str, model_type: str, page: str) -> None:
    (line,) = (line for line in section(page, "What can be trained").splitlines() if f"{name}: " in line)
    assert line.startswith(f"| [{model_type}]")


@pytest.mark.parametrize("model", UNSUPPORTED_MODELS, ids=lambda model: model.title)
def test_what_is_refused_has_a_reason_and_an_alternative(model: Unsupported, page: str) -> None:
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {model.title} |"))
    _, why, instead = (cell.strip() for cell in line.strip("| ").split(" | ")[1:])
    assert why.endswith(".") and instead.startswith("Use ")


def test_grok_2_is_among_what_is_refused_and_grok_1_says_where_its_adapter_loads(page: str) -> None:
    assert "| Grok-2 | `grok-2`" in section(page, "What cannot, and what to use instead")
    assert "not in plain transformers, which has no class of it" in section(page, "grok-1")


def test_every_usual_licence_has_its_terms(page: str) -> None:
    licenses = {each for family in FAMILIES.values() for each in family.licenses}
    assert not [each for each in licenses if terms_of(each) is None]
    assert all(f"\n### Licence {each}\n" in page for each in licenses)


@pytest.mark.parametrize(("model_type", "published"), MODELS, ids=lambda value: getattr(value, "name", None))
def test_a_shape_is_that_of_the_published_model(model_type: str, published: Published) -> None:
    inspected = inspected_model(model_type, published)
    assert inspected.record.base_parameters == pytest.approx(1e9 * published.billions, rel=0.01)


@pytest.mark.parametrize(
    ("model_type", "name", "memory", "nodes", "gpus"),
    [
        ("llama", "Llama 3.1 8B", 24, 1, 1),
        ("llama", "Llama 3.1 70B and 3.3 70B", 80, 1, 4),
        ("mixtral", "Mixtral 8x7B", 80, 1, 2),
        ("deepseek_v3", "DeepSeek-V3 and R1", 141, 2, 8),
    ],
)
def test_the_least_hardware_fits_and_less_does_not(
    model_type: str, name: str, memory: int, nodes: int, gpus: int
) -> None:
    (published,) = (each for each in PUBLISHED[model_type] if each.name == name)
    job = usual_job(inspected_model(model_type, published), TargetPreset.AUTO)
    found = least_hardware(job, memory * GIB)
    assert found is not None
    assert (found.nodes, found.gpus_per_node) == (nodes, gpus)
    assert found.zero_stage == (2 if found.gpus == 1 else 3)
    assert not any(plan_memory(less).fits for less in smaller(job.inputs, found, memory * GIB))


def smaller(inputs: PlanInputs, found: Hardware, memory: int) -> list[PlanInputs]:
    """The plan's inputs with one node less, or half of the node's GPUs."""
    if found.gpus == 1:
        return []
    nodes, gpus = (found.nodes - 1, GPUS_PER_NODE) if found.nodes > 1 else (1, found.gpus_per_node // 2)
    return [replace(inputs, gpu_memory=memory, workers=nodes, min_workers=nodes, gpus_per_worker=gpus)]
