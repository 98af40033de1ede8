"""How a job trains: adapter, optimisation, checkpoints, evaluation."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cloister_api.base import MODULE_PATTERN, ApiEnum, ApiModel, Duration, Rule, StoreUri

ModuleName = Annotated[str, Field(min_length=1, max_length=128, pattern=MODULE_PATTERN)]


class TargetPreset(ApiEnum):
    """Which weights get an adapter."""

    AUTO = "Auto"
    ATTENTION = "Attention"
    ALL_WITH_EXPERTS = "AllWithExperts"


class LoraTargets(ApiModel):
    """Which modules get an adapter. Routers of mixture-of-experts models always stay frozen."""

    preset: TargetPreset = TargetPreset.AUTO
    """Auto: all linear layers, on mixture-of-experts models attention and dense or shared MLP. Attention: only
    attention projections. AllWithExperts: routed experts too, which costs memory."""
    modules: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = None
    """Names of the modules, in place of the preset, for example [q_proj, v_proj]. Every name must match."""
    exclude: Annotated[list[ModuleName], Field(max_length=64)] | None = None
    """Names of modules that get no adapter, for example [lm_head]. Absent: none is left out."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.modules) || self.preset == 'Auto'",
            "lora.targets.modules replaces the preset; leave lora.targets.preset out",
            lambda targets: targets.modules is None or targets.preset == TargetPreset.AUTO,
        ),
    )


class Quantization(ApiEnum):
    """How the frozen base is held in GPU memory."""

    NONE = "None"
    NF4 = "NF4"


class AdapterSource(ApiModel):
    """An existing adapter."""

    uri: StoreUri
    """The adapter's folder, with adapter_model.safetensors and adapter_config.json: s3://bucket/prefix, or file:///path
    in local runs."""


class Lora(ApiModel):
    """The LoRA adapter (Hu et al. 2021): W + alpha / rank * B A."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank r of the adapter's matrices A (r x in) and B (out x r); more rank, more trainable parameters. vLLM serves
    ranks above 16 only with a flag."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 32.0
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with rankStabilized)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping an element of the adapter's input while training."""
    targets: LoraTargets = LoraTargets()
    """Which modules get an adapter."""
    rank_overrides: Annotated[dict[str, Annotated[int, Field(ge=1, le=512)]], Field(max_length=32)] | None = None
    """Ranks of single modules by name, for example {down_proj: 64}. Absent: all have rank."""
    rank_stabilized: bool = False
    """Scale the update by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023)."""
    quantization: Quantization = Quantization.NONE
    """How the frozen base is held in GPU memory: None, in bfloat16; NF4, in 4 bits (QLoRA; Dettmers et al. 2023), at
    ZeRO stages up to 2."""
    init_from: AdapterSource | None = None
    """Continue training this adapter. Absent: a new adapter."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.rankOverrides) || self.rankOverrides.all(module, size(module) >= 1 && size(module) <= 128)",
            "lora.rankOverrides takes names of modules of 1 to 128 characters",
            lambda lora: all(1 <= len(module) <= 128 for module in lora.rank_overrides or {}),
        ),
    )


class Scheduler(ApiEnum):
    """The learning rate over steps, after warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class AutoMode(ApiEnum):
    """A choice that can be left to the plan."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class Precision(ApiEnum):
    """The type of matrix products. Adapters, gradients and optimizer state are always float32."""

    BF16 = "BF16"
    FP32 = "FP32"


class Optimizer(ApiModel):
    """AdamW's constants (Loshchilov and Hutter 2019)."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the denominator."""


class Training(ApiModel):
    """Optimisation. The run ends at epochs or maxSteps, whichever comes first."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 3.0
    """Passes over the training examples; a fraction is allowed."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """At most this many optimizer steps. Absent: as many as epochs make."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate, for example 2e-4."""
    scheduler: Scheduler = Scheduler.COSINE
    """Learning rate after warm-up: Cosine or Linear down to minLearningRateRatio at the last step, or Constant."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The learning rate never falls below this fraction of its peak."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Fraction of the steps over which the learning rate rises from 0."""
    optimizer: Optimizer = Optimizer()
    """AdamW's constants."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay on the adapter."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients are scaled down to this global norm; 0 turns clipping off."""
    global_batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    """Examples (not tokens, not packed rows) in one optimizer step over all workers. The same on any number of
    workers."""
    micro_batch_tokens: Annotated[int, Field(ge=1, le=4_194_304)] | None = None
    """At most this many tokens in one forward pass on one device. Absent: chosen by the memory plan."""
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] | None = None
    """Longest example in tokens. Absent: 4096 or the model's own limit, whichever is smaller."""
    packing: AutoMode = AutoMode.AUTO
    """Put several examples into one row, each attending only to itself; the loss is the same as without. Auto: where
    the model's attention allows it; Always refuses other models."""
    precision: Precision = Precision.BF16
    """Type of matrix products: BF16 or FP32. Adapters, gradients and optimizer state are float32 either way."""
    gradient_checkpointing: AutoMode = AutoMode.AUTO
    """Recompute activations in the backward pass, which saves memory and costs about 1.45 times the arithmetic. Auto:
    where the memory plan needs it."""
    deterministic: bool = False
    """Use deterministic kernels, so that equal runs give bit-equal adapters; slower on GPUs."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 42
    """Seed of adapter initialisation, batch order and dropout."""


class Checkpoint(ApiModel):
    """How often the run is saved."""

    interval: Duration = "10m"
    """Time between checkpoints, for example 10m; 0s saves after every step."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of the newest checkpoints are kept while the run lasts."""


class EarlyStopping(ApiModel):
    """End the run when the validation loss no longer falls."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without improvement before the run ends."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.0
    """The validation loss must fall by more than this to count as an improvement."""


class Gate(ApiModel):
    """What the adapter must reach to be published."""

    min_relative_improvement: Annotated[float, Field(ge=0, le=1)]
    """The validation loss must be lower than the base model's by at least this fraction of it, for example 0.05."""


class Evaluation(ApiModel):
    """Measuring on the validation examples. Without validation examples there is none."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Evaluate after every so many steps, besides everyEpochs. Absent: at epochs only."""
    every_epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Evaluate after every so many epochs; a fraction is allowed."""
    keep_best: bool = True
    """Publish the adapter with the lowest validation loss; else the last one."""
    early_stopping: EarlyStopping | None = None
    """End the run when the validation loss no longer falls. Absent: the run goes to its end."""
    samples: Annotated[int, Field(ge=0, le=1000)] = 0
    """So many held-out rows are answered greedily before and after training, and exact matches counted."""
    gate: Gate | None = None
    """What the adapter must reach to be published. Absent: it is published whatever its loss."""
