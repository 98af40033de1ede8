"""SmolLM2's tokenizer and chat template alone, for tests that need no weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from support.smollm2 import GGUF_FILE, PACKAGE


def smollm2_tokenizer_folder() -> Path:
    """A folder with the tokenizer as transformers saves it, kept in the user's cache."""
    package = distribution(PACKAGE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "cloister" / "models" / f"smollm2-tokenizer-{package.version}"
    if folder.is_dir():
        return folder
    from transformers import AutoTokenizer

    gguf = Path(str(package.locate_file(GGUF_FILE)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            # Another process was quicker: its folder is as good as ours.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
