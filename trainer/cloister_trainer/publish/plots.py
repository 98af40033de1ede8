"""Curves as SVG, drawn by matplotlib without a display; equal inputs give equal bytes.

In the report the colours are CSS variables, so that one drawing is readable on light and on dark.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cloister_trainer.records import Checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 1500
"""Points of a curve; longer runs are averaged in equal groups of steps."""
SMOOTHED_PART = 0.04
"""Window of the smoothed loss, as a part of the run's steps."""
INK, GRID, RAW, MAIN, SECOND, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
"""Stand-ins: a drawing gets its colours from `for_page` or `for_file`."""
CSS_COLOURS = {
    INK: "var(--ink-soft)",
    GRID: "var(--line)",
    RAW: "var(--raw)",
    MAIN: "var(--main)",
    SECOND: "var(--second)",
    PAPER: "none",
}
PLAIN_COLOURS = {INK: "#4a5260", GRID: "#e3e6eb", RAW: "#b9cdf0", MAIN: "#2c64c8", SECOND: "#d2691e", PAPER: "#ffffff"}
STYLE: Any = {
    "svg.hashsalt": "cloister",
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.solid_capstyle": "round",
}


def plot_loss(checks: Checks, metrics: Sequence[dict[str, Any]]) -> str:
    """Training loss, raw and smoothed, with the validation losses."""
    return _draw(lambda axes: _loss(axes, checks, metrics), height=3.4)


def plot_learning_rate(metrics: Sequence[dict[str, Any]]) -> str:
    """Learning rate over steps."""
    return _draw(lambda axes: _curve(axes, metrics, "learningRate"), width=4.6, height=2.5)


def plot_grad_norm(metrics: Sequence[dict[str, Any]], max_grad_norm: float) -> str:
    """Gradient norm before clipping over steps, with the clipping limit."""

    def draw(axes: Axes) -> None:
        _curve(axes, metrics, "gradNorm")
        low, high = axes.get_ylim()
        if max_grad_norm > 0 and max_grad_norm <= 2 * high:
            axes.axhline(max_grad_norm, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)), label="clipped above")
            axes.set_ylim(min(low, 0.0), max(high, 1.1 * max_grad_norm))
            axes.legend(loc="best", fontsize=8.5)

    return _draw(draw, width=4.6, height=2.5)


def plot_lengths(edges: Sequence[float], counts: Sequence[int]) -> str:
    """Examples by length: `counts[i]` of them have from `edges[i]` up to `edges[i + 1]` tokens."""

    def draw(axes: Axes) -> None:
        widths = [right - left for left, right in itertools.pairwise(edges)]
        axes.bar(edges[:-1], counts, widths, align="edge", color=MAIN, edgecolor=MAIN, linewidth=0.4, alpha=0.8)
        axes.set_xlabel("Tokens")
        axes.set_ylabel("Examples")
        axes.grid(visible=False, axis="x")
        axes.set_xlim(edges[0], edges[-1])

    return _draw(draw, height=2.5)


def _loss(axes: Axes, checks: Checks, metrics: Sequence[dict[str, Any]]) -> None:
    steps, losses = _series(metrics, "loss")
    marker = "o" if len(steps) < 3 else ""
    axes.plot(steps, losses, color=RAW, linewidth=1.0, marker=marker, markersize=3, label="training")
    if len(steps) >= 8:
        axes.plot(steps, smooth(losses), color=MAIN, linewidth=1.8, label="training, smoothed")
    if checks.evaluations:
        at = [point.step for point in checks.evaluations]
        values = [point.loss for point in checks.evaluations]
        axes.plot(at, values, color=SECOND, linewidth=1.4, marker="o", markersize=4, label="validation")
    axes.set_xlabel("Step")
    axes.set_ylabel("Loss per trained token")
    axes.set_ylim(bottom=0.0)
    axes.margins(x=0.02)
    axes.legend(loc="upper right", fontsize=8.5)


def _curve(axes: Axes, metrics: Sequence[dict[str, Any]], key: str) -> None:
    steps, values = _series(metrics, key)
    axes.plot(steps, values, color=MAIN, linewidth=1.4)
    axes.set_xlabel("Step")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0.0)
    axes.margins(x=0.02)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window, so that the curve does not lag; the window shrinks towards both ends."""
    half = max(1, round(SMOOTHED_PART * len(values) / 2))
    sums = [0.0, *itertools.accumulate(values)]
    reaches = [min(half, at, len(values) - 1 - at) for at in range(len(values))]
    return [(sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1) for at, reach in enumerate(reaches)]


def _series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values, at most MAX_POINTS of them."""
    points = [(record["step"], record[key]) for record in metrics if math.isfinite(record[key])]
    group = math.ceil(len(points) / MAX_POINTS) or 1
    groups = [points[start : start + group] for start in range(0, len(points), group)]
    means = [tuple(sum(column) / len(column) for column in zip(*part, strict=True)) for part in groups]
    return [mean[0] for mean in means], [mean[1] for mean in means]


def _draw(draw: Callable[[Axes], None], *, width: float = 9.4, height: float) -> str:
    """An SVG element, without the XML prologue that HTML does not take."""
    with _style() as figure_class:
        figure = figure_class(figsize=(width, height))
        left, bottom, edge = 0.7 / width, 0.45 / height, 0.1
        axes = figure.add_axes((left, bottom, 1 - left - edge / width, 1 - bottom - edge / height))
        axes.set_facecolor("none")
        draw(axes)
        axes.tick_params(length=0)
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", facecolor=PAPER, metadata=no_metadata)
    svg = out.getvalue()
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg[svg.index("<svg") :])


_STYLE_LOCK = threading.Lock()
"""matplotlib's settings are the whole process's."""


@contextmanager
def _style() -> Iterator[Callable[..., Any]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with _STYLE_LOCK, mpl.rc_context(STYLE):
        yield Figure


def for_page(svg: str) -> str:
    """The drawing with the page's CSS variables as colours, as wide as the page lets it be."""
    responsive = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    responsive = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", responsive, count=1)
    return _recolour(responsive, CSS_COLOURS)


def for_file(svg: str) -> str:
    """The drawing in fixed colours on white."""
    return _recolour(svg, PLAIN_COLOURS)


def _recolour(svg: str, colours: dict[str, str]) -> str:
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    return svg
