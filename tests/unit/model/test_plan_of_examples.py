"""The jobs of examples/ fit into the GPUs that they ask for: planned with the real models' shapes, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from cloister_api.run import RunSettings
from cloister_trainer.model.plan import build_train_plan
from cloister_trainer.records import TrainPlan
from support.examples import of_kind
from support.model_folders import Tensors
from support.plans import a_run, an_index, an_inspected_model

GPU_MEMORY = {"default": "80Gi", "h100": "80Gi"}


@dataclass(frozen=True)
class Shape:
    """A Llama or Mixtral, as its config.json has it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    experts: int = 0

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "mixtral" if self.experts else "llama",
            "architectures": ["MixtralForCausalLM" if self.experts else "LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": 8,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 131072,
            **({"num_local_experts": self.experts, "num_experts_per_tok": 2} if self.experts else {}),
        }

    def tensors(self) -> Tensors:
        shapes = {"model.embed_tokens": (self.vocabulary, self.hidden), "model.norm": (self.hidden,)}
        for layer in range(self.layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer().items()}
        shapes["lm_head"] = (self.vocabulary, self.hidden)
        return {f"{name}.weight": ("BF16", shape) for name, shape in shapes.items()}

    def _layer(self) -> dict[str, tuple[int, ...]]:
        keys = self.hidden // self.heads * 8
        up, down = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }
        if not self.experts:
            return layer | {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
        layer["block_sparse_moe.gate"] = (self.experts, self.hidden)
        for expert in range(self.experts):
            layer |= {f"block_sparse_moe.experts.{expert}.{name}": up for name in ("w1", "w3")}
            layer[f"block_sparse_moe.experts.{expert}.w2"] = down
        return layer


LLAMA_8B = Shape(4096, 14336, 32, 32, 128256)
LLAMA_70B = Shape(8192, 28672, 80, 64, 128256)
MIXTRAL = Shape(4096, 14336, 32, 32, 32000, experts=8)


def planned(folder: str, shape: Shape, **changed: Any) -> TrainPlan:
    """The plan of the example's job, with its longest row as long as maxLength lets it be."""
    (shown,) = of_kind("FineTuneJob", folder)
    spec = dict(shown.object["spec"])
    spec["distribution"] = spec["distribution"] | changed
    length = spec.get("training", {}).get("maxLength", 4096)
    index = an_index(epoch_examples=20_000, epoch_tokens=20_000 * length // 2, longest=length)
    model = an_inspected_model(shape.config(), shape.tensors())
    return build_train_plan(a_run(RunSettings(gpu_memory=GPU_MEMORY), **spec), model, index)


@pytest.mark.parametrize(
    ("shape", "parameters"), [(LLAMA_8B, 8.03e9), (LLAMA_70B, 70.55e9), (MIXTRAL, 46.7e9)], ids=["8B", "70B", "8x7B"]
)
def test_the_shapes_are_those_of_the_models(shape: Shape, parameters: float) -> None:
    model = an_inspected_model(shape.config(), shape.tensors())
    assert model.record.base_parameters == pytest.approx(parameters, rel=0.001)


@pytest.mark.parametrize(
    ("folder", "shape", "stage"),
    [
        ("03-multi-node-gpu", LLAMA_8B, 2),
        ("04-large-model", LLAMA_70B, 3),
        ("05-mixture-of-experts", MIXTRAL, 3),
        ("06-kueue", LLAMA_8B, 2),
    ],
)
def test_a_job_fits_into_its_gpus(folder: str, shape: Shape, stage: int) -> None:
    plan = planned(folder, shape)
    assert plan.zero_stage == stage
    assert plan.gpu_memory_limit == 80 * 2**30
    assert sum(part.bytes for part in plan.gpu_memory) <= plan.gpu_memory_limit
    assert sum(part.bytes for part in plan.host_memory) <= 512 * 2**30  # of the profile in examples/values.yaml


def test_a_70b_model_is_sharded_without_being_told() -> None:
    assert planned("04-large-model", LLAMA_70B, zeroStage=None).zero_stage == 3
