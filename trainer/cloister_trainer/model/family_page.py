"""A family's section of docs/models.md, and the index of all families: what the table knows, and what the plan says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cloister_api.spec_training import Lora, LoraTargets, TargetPreset
from cloister_trainer.model.advice import WHAT_IF_MEMORY
from cloister_trainer.model.config import position_switch
from cloister_trainer.model.families import FAMILIES, SAME_AS, Family
from cloister_trainer.model.folder import InspectedModel
from cloister_trainer.model.hardware import Hardware, UsualJob, inspected_model, least_hardware, usual_job
from cloister_trainer.model.memory_parts import GIB
from cloister_trainer.model.published import PUBLISHED, Published
from cloister_trainer.model.quantity import readable
from cloister_trainer.model.servers import NAMES
from cloister_trainer.model.targets import resolve_targets
from cloister_trainer.model.tensors import layer_of, live_tensors

USUAL_GPU = 80 * GIB
NONE = "none"
"""In place of a number of GPUs."""


@dataclass(frozen=True)
class Planned:
    """A published model and what the plan says of it."""

    published: Published
    inspected: InspectedModel
    adapted: Mapping[TargetPreset, list[str]]
    """Names below a layer, by preset."""
    auto: UsualJob
    """The job that names no preset."""
    hardware: Mapping[int, Hardware | None]
    """Of that job, by the memory of one GPU."""
    with_experts: Hardware | None
    """Of the preset AllWithExperts, on the usual GPU."""


def plan_published() -> dict[str, list[Planned]]:
    """Every published model, by family."""
    return {
        model_type: [_plan(model_type, published) for published in PUBLISHED[model_type]] for model_type in FAMILIES
    }


def _plan(model_type: str, published: Published) -> Planned:
    inspected = inspected_model(model_type, published)
    auto = usual_job(inspected, TargetPreset.AUTO)
    experts = FAMILIES[model_type].experts is not None
    return Planned(
        published,
        inspected,
        {preset: _adapted(inspected, preset) for preset in TargetPreset},
        auto,
        {memory: least_hardware(auto, memory) for memory in WHAT_IF_MEMORY},
        least_hardware(usual_job(inspected, TargetPreset.ALL_WITH_EXPERTS), USUAL_GPU) if experts else None,
    )


def _adapted(inspected: InspectedModel, preset: TargetPreset) -> list[str]:
    lora = Lora(targets=LoraTargets(preset=preset))
    targets = resolve_targets(inspected.config, inspected.tensors, lora)
    return list(dict.fromkeys(_below_layer(name) for name in (*targets.modules, *targets.parameters)))


def index_lines(planned: Mapping[str, Sequence[Planned]]) -> Iterator[str]:
    """The table of all families."""
    titles = ("Family", "Models", "80 GiB GPUs, at least", "Usual licences", "Tested with")
    yield from ("## What can be trained", "", *table_head(*titles))
    for model_type, family in FAMILIES.items():
        least = [f"{each.published.name}: {_gpus(each.hardware[USUAL_GPU])}" for each in planned[model_type]]
        link = f"[{model_type}](#{model_type})"
        yield table_row(link, family.title, "<br>".join(least), ", ".join(family.licenses), _tested(family))
    yield ""


def family_lines(model_type: str, planned: Sequence[Planned]) -> Iterator[str]:
    """One family with its published models."""
    family = FAMILIES[model_type]
    yield from (f"## {model_type}", "", f"{family.title}.", "", *_facts(model_type, family, planned), "")
    yield from (*_hardware(family, planned), "")


def _facts(model_type: str, family: Family, planned: Sequence[Planned]) -> Iterator[str]:
    others = [name for name, same in SAME_AS.items() if same == model_type]
    if others:
        yield f"- Also with `model_type` {code(others)}, which is the same architecture."
    auto, attention, everything = (
        _of_all_sizes(family, planned, preset)
        for preset in (TargetPreset.AUTO, TargetPreset.ATTENTION, TargetPreset.ALL_WITH_EXPERTS)
    )
    yield f"- Adapted by the preset `Auto`: {_grouped(auto)}."
    yield f"- By `Attention`: {'the same' if attention == auto else _grouped(attention)}."
    if family.experts:
        yield f"- By `AllWithExperts`, besides: {_grouped(name for name in everything if name not in auto)}."
    yield f"- Frozen: {_frozen(family, planned, everything)}."
    yield f"- Attention: {_attention(family)}."
    yield f"- Packing: {_packing(family, planned)}."
    yield f"- Usual licences: {', '.join(f'[{each}](#{_anchor(license_heading(each))})' for each in family.licenses)}."
    servers = " and ".join(NAMES[server] for server in family.servers)
    yield f"- Servers that load its adapters: {servers or 'none that is known'}."
    if family.own_class:
        yield (
            "- Its adapter loads in vLLM, or in PEFT with Cloister's class for the base; not in plain transformers, "
            f"which has no class of it: [what it takes]({model_type}.md)."
        )
    yield f"- Tested with {_tested(family)}. Unproven: {' '.join(_unproven(family, planned))}"


def _of_all_sizes(family: Family, planned: Iterable[Planned], preset: TargetPreset) -> list[str]:
    """What the preset adapts in some size, in the family's order, experts last."""
    order = (*family.attention, *family.mlp)
    names = {name for each in planned for name in each.adapted[preset]}
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _frozen(family: Family, planned: Iterable[Planned], adapted: Sequence[str]) -> str:
    """Linear modules below a layer that no preset adapts, and experts that only one does."""
    left: list[str] = []
    for each in planned:
        live = live_tensors(family, each.inspected.config["num_hidden_layers"], each.inspected.tensors)
        matrices = [name for name, shape in live.parameters.items() if len(shape) == 2 and name.endswith(".weight")]
        left += [_below_layer(name).removesuffix(".weight") for name in matrices if layer_of(name)]
    names = [name for name in dict.fromkeys(left) if name not in adapted]
    parts = [f"what routes tokens to experts ({_grouped(names)})"] if names else []
    parts += ["routed experts, other than by `AllWithExperts`"] if family.experts else []
    return " and ".join(parts) or "nothing else"


def _attention(family: Family) -> str:
    kind = family.attention_kind.value
    if family.eager:
        whose = "Cloister's" if family.own_class else "transformers' own"
        return f"{kind}; {whose} eager attention, whose memory grows with the square of the tokens"
    if family.window_in_mask:
        return f"{kind}; transformers' own eager attention where an example is longer than the sliding window"
    return kind


def _packing(family: Family, planned: Iterable[Planned]) -> str:
    if not family.packing:
        return "no, one example a row: its layers would mix several"
    bounded = [
        f"{each.published.name} while no example has more than {switch:,} tokens (LongRoPE)"
        for each in planned
        if (switch := position_switch(each.inspected.config))
    ]
    return f"yes; {', '.join(bounded)}" if bounded else "yes"


def _unproven(family: Family, planned: Iterable[Planned]) -> Iterator[str]:
    if family.tested == "tiny":
        yield "Training of published weights."
    if family.experts:
        yield "Adapters of routed experts beyond tiny models."
    quantised = [each.published for each in planned if each.published.quantised]
    if quantised:
        names = ", ".join(each.name for each in quantised)
        yield f"The conversion to bf16 of what is published in {_methods(quantised)} ({names})."
    if family.unproven:
        yield family.unproven


def _hardware(family: Family, planned: Iterable[Planned]) -> Iterator[str]:
    sizes = [f"{memory // GIB} GiB" for memory in WHAT_IF_MEMORY]
    experts = ["With experts"] if family.experts else []
    yield from table_head("Model", "Parameters", "Adapter", *sizes, "Host memory", "Local disk", *experts)
    for each in planned:
        usual = each.hardware[USUAL_GPU]
        cells = [_gpus(each.hardware[memory]) for memory in WHAT_IF_MEMORY]
        cells += [readable(usual.host_bytes), readable(usual.disk_bytes)] if usual else [NONE, NONE]
        cells += [_gpus(each.with_experts)] if experts else []
        adapter = _count(each.auto.targets.trainable_parameters)
        yield table_row(each.published.name, _count(each.inspected.record.base_parameters), adapter, *cells)


def _tested(family: Family) -> str:
    return "a tiny model" if family.tested == "tiny" else "tiny and real weights"


def _methods(quantised: Iterable[Published]) -> str:
    return " and ".join(dict.fromkeys(str(each.quantised).upper() for each in quantised))


def _gpus(hardware: Hardware | None) -> str:
    if hardware is None:
        return NONE
    return f"{hardware.nodes} x {hardware.gpus_per_node}" if hardware.nodes > 1 else str(hardware.gpus_per_node)


def _count(number: int) -> str:
    """Parameters with three digits, in trillions, billions or millions."""
    for unit, scale in (("T", 1e12), ("B", 1e9)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e6:.3g} M"


def _grouped(names: Iterable[str]) -> str:
    """`self_attn`: q_proj, k_proj; `mlp`: up_proj."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        groups.setdefault(parent, []).append(f"`{leaf}`")
    return "; ".join(f"{parent} {', '.join(leaves)}" for parent, leaves in groups.items())


def _below_layer(name: str) -> str:
    place = layer_of(name)
    return place[1] if place else name


def code(names: Iterable[str]) -> str:
    """Each name as code."""
    return ", ".join(f"`{name}`" for name in names)


def _anchor(heading: str) -> str:
    return heading.lower().replace(".", "").replace(" ", "-")


def table_head(*cells: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield table_row(*cells)
    yield table_row(*("---" for _ in cells))


def table_row(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def license_heading(license_id: str) -> str:
    """Of the licence's section; a family may have the same name."""
    return f"Licence {license_id}"
