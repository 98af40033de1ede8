"""What a person sees while training runs: one line with step, loss, tokens/s and time left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from cloister_api.events import EvaluationDone, Progress
from cloister_trainer.reporter import Reporter
from cloister_trainer.train.messages import Message, Phase


class Display:
    """A bar on a terminal; elsewhere nothing, since event lines tell the same."""

    def __init__(self, reporter: Reporter, total_steps: int) -> None:
        self._reporter = reporter
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            console=reporter.console,
            transient=True,
            disable=not reporter.console.is_terminal,
        )
        self._task: TaskID = self._bars.add_task("Starting", total=total_steps, figures="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, message: Message) -> None:
        """Draw what has changed."""
        match message:
            case Progress():
                self._bars.update(
                    self._task,
                    description=f"Step {message.step}/{message.total_steps}",
                    completed=message.step,
                    figures=figures(message),
                )
            case EvaluationDone():
                if self._reporter.console.is_terminal:
                    self._reporter.say(evaluation_sentence(message))
            case Phase():
                self._bars.update(self._task, description=message.name)
            case _:
                pass


def figures(event: Progress) -> str:
    """loss 0.1234  1,234 tokens/s  3m20s left"""
    minutes, seconds = divmod(event.eta_seconds, 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
    return f"loss {event.loss:.4f}  {event.tokens_per_second:,.0f} tokens/s  {left} left"


def evaluation_sentence(event: EvaluationDone) -> str:
    """The validation loss beside the base model's."""
    if event.step == 0:
        return f"Validation loss of the base model: {event.loss:.4f}"
    return f"Validation loss after step {event.step}: {event.loss:.4f} (base model {event.base_loss:.4f})"
