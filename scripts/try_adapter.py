"""Ask the quickstart's model, with its adapter, in stock PEFT:

.venv/bin/python scripts/try_adapter.py "Hi, please send six crates of oak panels to hall 3 by Thu. Ada"
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# transformers looks for DeepSpeed, which looks for accelerators and says so.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.smollm2 import cached_folder, quiet_transformers  # noqa: E402  (found by the line above)

ADAPTER = ROOT / ".build" / "quickstart" / "adapter"
SYSTEM = "Extract the order as JSON."


def main() -> int:
    """Print the answer to one order."""
    parser = argparse.ArgumentParser(description="Ask the model with an adapter.")
    parser.add_argument("order", help="an order as somebody would type it")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="a published adapter's folder")
    parser.add_argument("--without", action="store_true", help="ask the base model alone")
    options = parser.parse_args()
    if not options.without and not (options.adapter / "adapter_config.json").exists():
        parser.error(f"there is no adapter in {options.adapter}: run `make quickstart` first, or give --adapter")
    print(answer(options.order, None if options.without else options.adapter))
    return 0


def answer(order: str, adapter: Path | None) -> str:
    """The model's greedy answer, with the adapter or, without one, as it was."""
    base = cached_folder()
    with quiet_transformers():
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": order}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    sys.exit(main())
