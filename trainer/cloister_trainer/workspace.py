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
        """$CLOISTER_SCRATCH, else `cloister` in the user's cache folder; absolute: Ray's workers start elsewhere."""
        scratch = environ.get(SCRATCH_ENVIRONMENT) or Path(environ.get("XDG_CACHE_HOME") or "~/.cache", "cloister")
        return cls(Path(scratch).expanduser().absolute())

    @property
    def models(self) -> Path:
        """Weights by fingerprint, shared by all runs on this machine."""
        return self.root / "models"

    def run(self, uid: str) -> Path:
        """Files of one run, in a folder that nobody else may read: they hold its tokens. Made when it is missing."""
        folder = self.root / "runs" / uid
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
