"""Where a step keeps files on this machine: fetched models, tokens, Ray's session."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRATCH_ENVIRONMENT = "CLOISTER_SCRATCH"


@dataclass(frozen=True)
class Workspace:
    """Folders on the local disk; everything in them can be made again."""

    root: Path

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> Workspace:
        """$CLOISTER_SCRATCH, else `cloister` in the user's cache folder."""
        if scratch := environ.get(SCRATCH_ENVIRONMENT):
            return cls(Path(scratch))
        cache = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(cache) / "cloister")

    @property
    def models(self) -> Path:
        """Weights by fingerprint, shared by all runs on this machine."""
        return self.root / "models"

    def run(self, uid: str) -> Path:
        """Files of one run."""
        return self.root / "runs" / uid
