"""report.html: one page on the whole run that needs nothing from elsewhere, no script among it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cloister_trainer.publish import plots
from cloister_trainer.publish.facts import RunFacts
from cloister_trainer.publish.gate import relative_improvement
from cloister_trainer.records import MemoryPart, SampleAnswer, TrainPlan

SAMPLES_SHOWN = 5
"""Samples that are open at once; the others are folded. Those that were answered otherwise than expected come first."""

_ENVIRONMENT = Environment(
    loader=PackageLoader("cloister_trainer.publish", "."),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_report(facts: RunFacts, metrics: Sequence[dict[str, Any]], loss: str) -> str:
    """The report as HTML, with the drawing `loss`. Everything but our own drawings is escaped."""
    checks, training = facts.checks, facts.run.spec.training
    curves = {
        "loss": loss,
        "learning_rate": plots.plot_learning_rate(metrics),
        "grad_norm": plots.plot_grad_norm(metrics, training.max_grad_norm),
    }
    context = {
        "facts": facts,
        "checks": checks,
        "plan": facts.train_plan,
        "data": facts.plan.data,
        "model": facts.plan.model,
        "improvement": relative_improvement(checks),
        "curves": {name: _inline(svg) for name, svg in curves.items()},
        "lengths": _lengths(facts.plan.data.report),
        "found": facts.plan.data.report,
        "fates": _fates(facts.plan.data.report),
        "settings": _settings(facts),
        "memory": _memory(facts.train_plan, checks.measured_memory),
        "samples": sorted(checks.samples, key=_is_equal),
        "samples_shown": SAMPLES_SHOWN,
        "is_equal": _is_equal,
        "words": words,
        "throughput": _throughput(metrics),
        "number": lambda value: f"{value:,}",
        "bytes": format_bytes,
        "duration": format_duration,
        "moment": format_moment,
    }
    return _ENVIRONMENT.get_template("report.html.j2").render(context)


def format_bytes(count: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_moment(time: str) -> str:
    """`2 January 2026, 15:04 UTC` of an ISO 8601 time."""
    moment = datetime.fromisoformat(time).astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _lengths(found: dict[str, Any]) -> Markup | None:
    histogram = found.get("lengths", {}).get("histogram")
    if not histogram:
        return None
    return _inline(plots.plot_lengths(histogram["edges"], histogram["examples"]))


def _inline(svg: str) -> Markup:
    return Markup(plots.for_page(svg))  # noqa: S704  (drawn by us from numbers, no text of others)


FATES = (
    ("rows", "Rows read"),
    ("duplicates", "Duplicates left out"),
    ("truncated", "Examples cut to the longest length"),
    ("dropped", "Examples left out as too long"),
    ("split", "Examples split"),
    ("rewrittenTurns", "Conversations whose template rewrites earlier turns"),
    ("mergedBorders", "Tokens over the border of prompt and completion"),
)


def _fates(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What became of the dataset's rows; counts of 0 say nothing."""
    fates = [(label, f"{found[key]:,}") for key, label in FATES if found.get(key)]
    overlap = found.get("overlap", {}).get("rows")
    lengths = found.get("lengths", {})
    if overlap:
        fates.append(("Training rows that are in the validation set too", f"{overlap:,}"))
    if "percentiles" in lengths:
        middle, high = lengths["percentiles"]["50"], lengths["percentiles"]["95"]
        fates.append(("Lengths in tokens", f"median {middle:,}, 95 % at most {high:,}, longest {lengths['max']:,}"))
    return fates


def _rows(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines of a table."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += _rows(value, prefix=f"{name}.")
        elif isinstance(value, list):
            rows += [(name, _plain(item)) for item in value] or [(name, "none")]
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(facts: RunFacts) -> list[tuple[str, list[tuple[str, str]]]]:
    """The resolved spec by section, without what says nothing about the result."""
    spec = facts.run.spec.to_api()
    sections = ("model", "dataset", "lora", "training", "distribution", "evaluation", "checkpoint", "output")
    return [(section, _rows(spec[section])) for section in sections if spec.get(section)]


def _is_equal(sample: SampleAnswer) -> bool:
    return sample.after.strip() == sample.expected.strip()


def words(name: str) -> str:
    """`frozen weights` of `frozenWeights`."""
    return re.sub(r"(?<=[a-z])([A-Z])", lambda match: f" {match[1].lower()}", name)


def _memory(plan: TrainPlan, measured: Sequence[MemoryPart]) -> dict[str, Any]:
    """Bars of the plan, and what was measured beside its sum; on CPUs everything lies in host memory."""
    planned = plan.gpu_memory or plan.host_memory
    total = sum(part.bytes for part in planned)
    scale = max([total, *(part.bytes for part in measured)], default=0) or 1
    bars = [(part, 100 * part.bytes / scale) for part in planned if part.bytes > 0]
    return {
        "what": "one GPU" if plan.gpu_memory else "one worker",
        "planned": bars,
        "total": total,
        "total_share": 100 * total / scale,
        "measured": [(part, 100 * part.bytes / scale) for part in measured],
    }


def _throughput(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the steps."""
    names = ("tokensPerSecond", "trainedTokensPerSecond", "paddingShare")
    return {
        name: sum(record[name] for record in metrics) / len(metrics)
        for name in names
        if metrics and all(name in record for record in metrics)
    }
