"""docs/real-run.md and the curve beside it, from what benchmarks/real_run.py kept in its folder."""

from __future__ import annotations

import io
import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cloister_trainer.publish import plots
from cloister_trainer.records import Checks, SampleAnswer

PAGE = """\
# A real run, killed twice

```sh
make bench-real
```

trains SmolLM2-135M-Instruct on {train_rows:,} mails that order things, to answer each with its order as JSON, on two
workers and on CPUs, with an S3 store beside them. At two steps drawn from a seed the whole process group of
`cloister run` gets SIGKILL, and the same command is given again. The command writes this page.

A mail orders one to three things; in four of ten a later sentence changes a quantity or the place, or takes a thing
back. An answer counts only when it equals the expected one in every character. The weights are real and public; they
come out of a 4-bit file in a Python package, so the model is a little worse than the published one.

{machine}

## Found

| {held_out_rows} mails that were not trained on | base model | adapter |
| --- | --- | --- |
| loss per token of the answer | {base_loss:.3f} | {loss:.3f} |
| answered exactly | {before} | {after} |

![Loss by step, with the steps that were made twice]({svg})

| start of `cloister run` | steps | newest checkpoint | ended by | seconds |
| --- | --- | --- | --- | --- |
{starts}

{twice}

{comparison}

## Answers

{answers}

## The job

```yaml
{job}
```
"""
COMPARISON = """\
The same job, undisturbed: the same but for its `output.uri`, and that it answers no held-out mails, which comes after
training.

| | killed twice | undisturbed |
| --- | --- | --- |
| sha256 of `adapter_model.safetensors` | `{killed.digest:.16}…` | `{undisturbed.digest:.16}…` |
| loss of the last step | {killed.last_loss!r} | {undisturbed.last_loss!r} |
| seconds | {killed.seconds:.0f} | {undisturbed.seconds:.0f} |

{verdict}"""
SHOWN_CHARACTERS = 300
"""Of an answer; a model that was not trained for it does not end."""


@dataclass(frozen=True)
class Kept:
    """What one run left."""

    checks: Checks
    metrics: list[dict[str, Any]]
    starts: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path, name: str) -> Kept:
        """From the folder of benchmarks/real_run.py."""
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        return cls(
            Checks.model_validate_json((folder / name / "checks.json").read_text()),
            [json.loads(line) for line in lines],
            json.loads((folder / f"{name}.json").read_text()),
        )

    @property
    def losses(self) -> list[float]:
        """The training loss of each step."""
        return [row["loss"] for row in self.metrics]

    @property
    def last_loss(self) -> float:
        """That of the last step."""
        return self.losses[-1]

    @property
    def digest(self) -> str:
        """sha256 of the adapter's tensors."""
        return self.checks.adapter.sha256

    @property
    def seconds(self) -> float:
        """All starts together."""
        return float(sum(start["seconds"] for start in self.starts))


def write_page(page: Path, folder: Path, job: dict[str, Any], rows: int, note: str) -> None:
    """The page, and its drawing beside it under the same name with `.svg`."""
    killed = Kept.read(folder, "killed")
    undisturbed = Kept.read(folder, "undisturbed") if (folder / "undisturbed.json").exists() else None
    svg = page.with_suffix(".svg")
    svg.write_text(draw(killed))
    page.write_text(render(killed, undisturbed, job, rows, note, svg.name))


def render(killed: Kept, undisturbed: Kept | None, job: dict[str, Any], rows: int, note: str, svg: str) -> str:
    """The page's text."""
    checks, match = killed.checks, killed.checks.exact_match
    assert match is not None
    return PAGE.format(
        train_rows=rows,
        held_out_rows=match.rows,
        machine=machine(killed, note),
        base_loss=checks.base_loss,
        loss=checks.loss,
        before=f"{match.before} of {match.rows}",
        after=f"{match.after} of {match.rows} ({match.after / match.rows:.0%})",
        svg=svg,
        starts="\n".join(start_row(number, start) for number, start in enumerate(killed.starts, 1)),
        twice=twice(killed),
        comparison=comparison(killed, undisturbed),
        answers="\n\n".join(answer(sample) for sample in chosen(checks.samples)),
        job=yaml_of(job),
    )


def start_row(number: int, start: dict[str, Any]) -> str:
    """One start of the command as a row of the table."""
    steps, ended = f"{start['first_step']} to {start['last_step']}", "SIGKILL" if start["killed"] else "itself"
    return f"| {number} | {steps} | {start['checkpoint'] or 'none'} | {ended} | {start['seconds']:.0f} |"


def twice(killed: Kept) -> str:
    """How much the kills cost."""
    pairs = zip(killed.starts, killed.starts[1:], strict=False)
    again = sum(before["last_step"] - after["first_step"] + 1 for before, after in pairs)
    return f"{again} of {len(killed.metrics)} steps were made twice."


def comparison(killed: Kept, undisturbed: Kept | None) -> str:
    """Whether the two runs are the same; without the second, that nothing is known."""
    if undisturbed is None:
        return "The same job was not run undisturbed, so nothing is said of whether that gives the same adapter."
    return COMPARISON.format(killed=killed, undisturbed=undisturbed, verdict=verdict(killed, undisturbed))


def verdict(killed: Kept, undisturbed: Kept) -> str:
    """What two runs of one job should be, or where they part."""
    for step, (ours, theirs) in enumerate(zip(killed.losses, undisturbed.losses, strict=True), 1):
        if ours != theirs:
            return f"**They differ**: the loss of step {step} is the first that is not the same."
    if killed.digest != undisturbed.digest:
        return "**The adapters differ**, though the loss of every step is the same."
    return "The adapters are equal bit by bit, and so is the loss of every step, with `lora.dropout` above 0."


def machine(killed: Kept, note: str) -> str:
    """What it ran on, and when."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    day = datetime.fromisoformat(killed.metrics[-1]["time"])
    versions = ", ".join(f"{name} {version}" for name, version in sorted(killed.checks.versions.items()))
    begin = f"The figures are of {day.day} {day:%B %Y}, on a virtual machine with {os.cpu_count()} CPU cores"
    text = f"{begin} and {memory:.0f} GiB{f' {note}' if note else ''}. Versions: {versions}."
    return textwrap.fill(text, 120, break_on_hyphens=False)


def chosen(samples: Sequence[SampleAnswer]) -> list[SampleAnswer]:
    """The first mail that is answered exactly, and the first that is not."""
    right = [each for each in samples if each.after.strip() == each.expected.strip()]
    wrong = [each for each in samples if each not in right]
    return [*right[:1], *wrong[:1]]


def answer(sample: SampleAnswer) -> str:
    """A held-out mail with what was expected and what came."""
    mail = sample.prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    is_right = sample.after.strip() == sample.expected.strip()
    parts = {"mail": mail, "base model": sample.before, "adapter": sample.after}
    if not is_right:
        parts["expected"] = sample.expected
    shortened = {name: textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" …") for name, text in parts.items()}
    lines = [f"{name + ':':12}{text}" for name, text in shortened.items()]
    return "\n".join(["Right:" if is_right else "Wrong:", "", "```text", *lines, "```"])


def yaml_of(job: dict[str, Any]) -> str:
    """The manifest as a person writes it."""
    out = io.StringIO()
    YAML().dump(job, out)
    return out.getvalue().rstrip()


def draw(killed: Kept) -> str:
    """Training loss by step, held-out loss, and what each kill made again, as SVG on white."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.4, 3.4))
        axes = figure.add_axes((0.075, 0.14, 0.915, 0.84))
        steps = [row["step"] for row in killed.metrics]
        axes.plot(steps, killed.losses, color=plots.RAW, linewidth=1.0, label="training")
        axes.plot(steps, plots.smooth(killed.losses), color=plots.MAIN, linewidth=1.8, label="training, smoothed")
        points = killed.checks.evaluations
        axes.plot(
            [p.step for p in points], [p.loss for p in points], color=plots.SECOND, marker="o", markersize=4,
            linewidth=1.4, label="held-out mails",
        )  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        for before, after in zip(killed.starts, killed.starts[1:], strict=False):
            axes.axvspan(after["first_step"], before["last_step"], color=plots.GRID, zorder=0)
            axes.axvline(before["last_step"], color=plots.INK, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.text(
                before["last_step"],
                0.6,
                f" killed at {before['last_step']},\n on from {after['first_step']}",
                va="top",
                fontsize=8.5,
                transform=axes.get_xaxis_transform(),  # the height is a part of the drawing's
            )
        axes.set_xlabel("Step")
        axes.set_ylabel("Loss per trained token")
        axes.margins(x=0.02)
        axes.tick_params(length=0)
        axes.legend(loc="upper right", fontsize=8.5)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", facecolor=plots.PAPER, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = out.getvalue()
    return plots.for_file(svg[svg.index("<svg") :])
