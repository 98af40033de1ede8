"""TRL's SFTTrainer on the same rows, already tokenised; variants are the settings worth trying."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.contenders.workload import (
    ALPHA,
    LEARNING_RATE,
    MICRO_BATCH_TOKENS,
    RANK,
    TARGETS,
    TRL_VARIANTS,
    WARM_UP_STEPS,
    Options,
    options,
    report,
)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Starts after the warm-up steps and stops with the last step."""

    def __init__(self) -> None:
        self.started = self.stopped = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        if state.global_step == WARM_UP_STEPS:
            self.started = time.perf_counter()
        self.stopped = time.perf_counter()


def main(asked: Options) -> None:
    """Train and report."""
    dtype = torch.bfloat16 if asked.precision == "BF16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=dtype)
    rows = asked.workload.rows(asked.steps, model.config.vocab_size)
    dataset = Dataset.from_list(
        [
            {
                "input_ids": row.tokens.tolist(),
                "completion_mask": [int(position >= row.first_label) for position in range(len(row.tokens))],
            }
            for row in rows
        ]
    )
    variant = TRL_VARIANTS[asked.variant]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=folder, **settings(asked, variant)),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(asked.model),
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        steps = trainer.train().global_step
    total = sum(len(row.tokens) for row in rows)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report(round(total * (steps - WARM_UP_STEPS) / steps), clock.stopped - clock.started, losses)


def settings(asked: Options, variant: dict[str, Any]) -> dict[str, Any]:
    """Equal batches: as many rows (packed: as many tokens) a step as the other contenders take."""
    micro = variant["per_device_train_batch_size"]
    size = asked.workload.batch_size
    if variant.get("packing"):
        size = max(1, round(size * sum(asked.workload.lengths) / 2 / MICRO_BATCH_TOKENS))
    return {
        "max_length": asked.workload.lengths[1],
        "completion_only_loss": True,
        "gradient_accumulation_steps": max(1, size // micro),
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": asked.precision == "BF16",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        **variant,
    }


if __name__ == "__main__":
    main(options())
