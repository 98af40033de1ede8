"""An interruption that loses nothing."""

from __future__ import annotations


class Interrupted(Exception):  # noqa: N818  (not an error: the same command goes on)
    """The run was asked to stop and has stopped.

    `step` is the checkpoint to go on from, None when there is none.
    """

    def __init__(self, step: int | None = None) -> None:
        super().__init__(step)
        self.step = step

    def sentence(self, *, fresh: bool = False) -> str:
        """What was kept and how to go on; `fresh` for a command that said --fresh."""
        kept = "No checkpoint was written yet" if self.step is None else f"A checkpoint of step {self.step} is kept"
        return f"Interrupted. {kept}; {how_to_go_on(fresh=fresh)}"


def how_to_go_on(*, fresh: bool = False) -> str:
    """The command that goes on with an interrupted run; --fresh would throw away what there is."""
    return f"run the same command {'without --fresh' if fresh else 'again'} to go on."
