"""An interruption that loses nothing."""

from __future__ import annotations


class Interrupted(Exception):  # noqa: N818  (not an error: the same command goes on)
    """The run was asked to stop and has stopped.

    `step` is the checkpoint to go on from, None when there is none.
    """

    def __init__(self, step: int | None = None) -> None:
        super().__init__(step)
        self.step = step

    @property
    def sentence(self) -> str:
        """What was kept and how to go on."""
        kept = "No checkpoint was written yet" if self.step is None else f"A checkpoint of step {self.step} is kept"
        return f"Interrupted. {kept}; run the same command again to go on."
