"""The memory plan against the measured peak of real training steps on one GPU.

Random models with the layer shapes of published ones, a few layers of each, through the code that trains: adapters,
attention over segments, loss in chunks, AdamW. Parts that need DeepSpeed or several processes (reduce buckets, stage 3,
NCCL) and those outside PyTorch's allocator (context, driver) are left out of the estimate. A ratio below 1 means that
the plan promises too much; goal: 1.0 to 1.4.

    python -m benchmarks.memory_plan
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import Any

import torch

from cloister_api.spec_training import Lora, LoraTargets, Precision, TargetPreset
from cloister_trainer.model.cost import model_cost
from cloister_trainer.model.memory_parts import GIB, OUTSIDE_ALLOCATOR, Choice, PlanInputs, device_parts
from cloister_trainer.model.targets import resolve_targets
from cloister_trainer.model.tensors import TensorInfo
from cloister_trainer.train import attention
from cloister_trainer.train.layout import MicroBatch
from cloister_trainer.train.lora import add_lora, trainable_parameters
from cloister_trainer.train.model import TrainingModule, frozen
from cloister_trainer.train.norms import fuse_norms

LEFT_OUT = (*OUTSIDE_ALLOCATOR, "reduce buckets")
LABEL_SHARE = 3
STEPS = 2

LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 8B, 8 layers": ("llama", {**LLAMA_8B, "vocab_size": 128256, "num_hidden_layers": 8}),
    "Qwen3 4B, 12 layers": (
        "qwen3",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_hidden_layers": 12,
            "tie_word_embeddings": True,
        },
    ),
    "Phi-3 mini, 8 layers": (
        "phi3",
        {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "num_hidden_layers": 8,
        },
    ),
    "OLMo 2 7B, 8 layers": (
        "olmo2",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 100352,
            "num_hidden_layers": 8,
        },
    ),
    "Gemma 2 2B, 8 layers": (
        "gemma2",
        {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256000,
            "num_hidden_layers": 8,
        },
    ),
    "Mixtral 8x7B, 4 layers": (
        "mixtral",
        {**LLAMA_8B, "vocab_size": 32000, "num_hidden_layers": 4, "num_local_experts": 8},
    ),
    "Qwen3 30B-A3B, 8 layers": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_hidden_layers": 8,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    "DeepSeek-V2 Lite, 6 layers": (
        "deepseek_v2",
        {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 102400,
            "num_hidden_layers": 6,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
}
CASES = ((2048, False, TargetPreset.AUTO), (8192, False, TargetPreset.AUTO), (8192, True, TargetPreset.AUTO))
EXPERT_CASES = ((2048, False, TargetPreset.ALL_WITH_EXPERTS), (2048, True, TargetPreset.ALL_WITH_EXPERTS))


def main() -> int:
    """One line a case; exit code 1 where the plan is too low."""
    if not torch.cuda.is_available():
        print("No GPU here: nothing is measured.")
        return 0
    low = 0
    print(f"{'model':28}{'tokens':>8}{'recompute':>11}{'experts':>9}{'measured':>11}{'plan':>11}{'ratio':>7}")
    for title, (model_type, sizes) in SHAPES.items():
        for tokens, checkpointing, preset in (*CASES, *(EXPERT_CASES if "expert" in str(sizes) else ())):
            measured, estimate = measure(model_type, sizes, tokens, checkpointing, preset)
            ratio = estimate / measured
            low += ratio < 1
            experts = preset is TargetPreset.ALL_WITH_EXPERTS
            print(
                f"{title:28}{tokens:8}{checkpointing!s:>11}{experts!s:>9}"
                f"{measured / GIB:7.2f} GiB{estimate / GIB:7.2f} GiB{ratio:7.2f}",
                flush=True,
            )
    return min(1, low)


def measure(
    model_type: str, sizes: dict[str, Any], tokens: int, checkpointing: bool, preset: TargetPreset
) -> tuple[int, int]:
    """(peak bytes of PyTorch's allocator over a few steps, bytes that the plan says)."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model, config = random_model(model_type, sizes, tokens)
    lora = Lora(targets=LoraTargets(preset=preset))
    tensors = {name: TensorInfo("BF16", tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    targets = resolve_targets(config.to_dict(), tensors, lora)
    module = TrainingModule(add_lora(model, targets, lora, seed=1).to("cuda"), Precision.BF16).train()
    module.set_gradient_checkpointing(checkpointing)
    optimizer = torch.optim.AdamW(list(trainable_parameters(module.model).values()), lr=1e-4)
    for _ in range(STEPS):
        module(random_batch(tokens, config.vocab_size)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    torch.cuda.synchronize()
    inputs = PlanInputs(
        cost=model_cost(config.to_dict(), tensors, targets, Precision.BF16, on_gpus=True),
        longest=tokens,
        tokens_per_step=tokens,
        examples_per_step=1,
        workers=1,
        gpus_per_worker=1,
        min_workers=1,
        gpu_memory=None,
    )
    inputs = replace(inputs, eager_attention=attention.implementation_for(config, tokens) != attention.NAME)
    parts = device_parts(inputs, Choice(2, checkpointing, tokens))
    return torch.cuda.max_memory_allocated(), sum(part.bytes for part in parts if part.name not in LEFT_OUT)


def random_model(model_type: str, sizes: dict[str, Any], tokens: int) -> tuple[Any, Any]:
    """A frozen bf16 model on the GPU, and its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    config = AutoConfig.for_model(model_type, **{"max_position_embeddings": 32768} | sizes)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention.implementation_for(config, tokens)
        )
    fuse_norms(model)
    return frozen(model), config


def random_batch(tokens: int, vocabulary: int) -> MicroBatch:
    """One segment; the last third of its tokens carry loss."""
    row = torch.randint(3, vocabulary, (1, tokens), device="cuda")
    positions = torch.arange(tokens - tokens // LABEL_SHARE - 1, tokens - 1, device="cuda")
    return MicroBatch(
        input_ids=row,
        position_ids=torch.arange(tokens, device="cuda")[None],
        cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32, device="cuda"),
        segment_lengths=(tokens,),
        label_positions=positions,
        labels=row[0, positions + 1],
        weight=1,
    )


if __name__ == "__main__":
    sys.exit(main())
