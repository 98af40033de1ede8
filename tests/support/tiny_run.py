"""A tiny random Llama with tokens written directly, and ranks that train it without Ray."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.records import (
    FileDigest,
    LicenseFinding,
    ListedFile,
    ModelRecord,
    PlanFile,
    TokenShard,
    TokensIndex,
    TrainPlan,
)
from cloister_trainer.storage import open_storage

VOCABULARY = 64
UID = "0b5b3c52-5d0c-5c7e-9f50-3f4c64a3f6a1"
_PRELOADED = ["deepspeed", "peft", "transformers.models.llama.modeling_llama", "cloister_trainer.train.worker"]


def digest_of(path: Path, name: str) -> FileDigest:
    data = path.read_bytes()
    return FileDigest(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def make_model(folder: Path) -> ModelRecord:
    """A Llama of hidden size 32 with 2 layers and random weights, as a Hugging Face folder."""
    if not folder.exists():
        write_model(folder)
    return record_of(folder)


def write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def record_of(folder: Path) -> ModelRecord:
    (weights,) = open_storage().list((folder / "model.safetensors").as_uri())
    small = [digest_of(folder / name, name) for name in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    return ModelRecord(
        uri=folder.as_uri(),
        model_type="llama",
        architecture="LlamaForCausalLM",
        small_files=small,
        weight_files=[ListedFile(name=weights.name, size=weights.size, etag=weights.etag)],
        header_digest="0" * 64,
        fingerprint=small[0].sha256,
        ignored_files=[],
        base_parameters=30_000,
        license=LicenseFinding(id="apache-2.0", evidence="Stated"),
        position_limit=256,
    )


def make_tokenizer() -> Any:
    """Token i is the word w<i>."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")


def make_shard(folder: Path, name: str, examples: int, seed: int) -> TokenShard:
    """Examples of 5 to 40 tokens that count upwards, the second half of each trained: easy to learn."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    rows, spans, offsets = [], [], [0]
    for index in range(examples):
        length = int(rng.integers(5, 41))
        rows.append((rng.integers(1, VOCABULARY) + np.arange(length)) % (VOCABULARY - 1) + 1)
        spans.append((index, length // 2, length))
        offsets.append(offsets[-1] + length)
    tensors = {
        "tokens": np.concatenate(rows).astype(np.uint32),
        "offsets": np.array(offsets, dtype=np.int64),
        "labelSpans": np.array(spans, dtype=np.int32),
        "repeats": np.ones(examples, dtype=np.uint8),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return TokenShard(
        file=digest_of(folder / name, name),
        examples=examples,
        tokens=offsets[-1],
        trained_tokens=sum(end - start for _, start, end in spans),
    )


def make_tokens(folder: Path, train: int, validation: int) -> TokensIndex:
    shard = make_shard(folder, "train-00000.safetensors", train, seed=1)
    held_out = [make_shard(folder, "validation-00000.safetensors", validation, seed=2)] if validation else []
    return TokensIndex(
        digest="1" * 64,
        train=[shard],
        validation=held_out,
        epoch_examples=train,
        epoch_tokens=shard.tokens,
        epoch_trained_tokens=shard.trained_tokens,
        validation_examples=validation,
        longest=40,
        stop_token_id=None,
        pad_token_id=0,
    )


@dataclass
class TinyRun:
    """A run in `root`: model, tokens, plan and the run file."""

    root: Path
    run: Run
    plan: PlanFile

    @property
    def scratch(self) -> Path:
        return self.root / "scratch" / "runs" / self.run.uid

    def adapter(self) -> bytes:
        return self.stored("adapter/adapter_model.safetensors").read_bytes()

    def stored(self, name: str) -> Path:
        return Path(self.run.layout.root.removeprefix("file://")) / name

    def metrics(self) -> list[dict[str, Any]]:
        parts = sorted(self.stored("metrics").glob("from-*.jsonl"))
        return [json.loads(line) for part in parts for line in part.read_text().splitlines()]

    def checks(self) -> dict[str, Any]:
        checks: dict[str, Any] = json.loads(self.stored("adapter/checks.json").read_text())
        return checks


def make_run(
    root: Path,
    *,
    steps: int = 6,
    workers: int = 1,
    stage: int = 2,
    train: int = 24,
    validation: int = 0,
    micro_batch_tokens: int = 64,
    training: dict[str, Any] | None = None,
    inputs: Path | None = None,
    **spec: Any,
) -> TinyRun:
    """A CPU run of `steps` steps of 8 examples. `inputs` shares the model and tokens of another run's root."""
    inputs = inputs or root / "inputs"
    if not (inputs / "model.json").exists():
        model = make_model(inputs / "model")
        (inputs / "model.json").write_text(model.model_dump_json())
    model = ModelRecord.model_validate_json((inputs / "model.json").read_text())
    tokens = inputs / f"tokens-{train}-{validation}"
    index = make_tokens(tokens, train, validation)
    full = {
        "model": {"uri": model.uri},
        "dataset": {"uri": (inputs / "rows.jsonl").as_uri()},
        "output": {"uri": (root / "out").as_uri()},
        "lora": {"rank": 4, "alpha": 8},
        "training": {
            "maxSteps": steps,
            "epochs": 100,
            "globalBatchSize": 8,
            "learningRate": 1e-2,
            "precision": "FP32",
            **(training or {}),
        },
        "distribution": {"workers": workers, "gpusPerWorker": 0, "zeroStage": stage},
        **spec,
    }
    settings = RunSettings(require_enforced_egress=False)
    run = Run(uid=UID, namespace="local", name="tiny", spec=FineTuneJobSpec.model_validate(full), settings=settings)
    modules = [
        f"model.layers.{layer}.{part}"
        for layer in range(2)
        for part in (
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    ]
    plan = TrainPlan(
        zero_stage=stage,
        micro_batch_tokens=micro_batch_tokens,
        gradient_checkpointing=False,
        packing=True,
        max_length=64,
        total_steps=steps,
        steps_per_epoch=-(-train // 8),
        target_modules=modules,
        trainable_parameters=0,
        gpu_memory=[],
        host_memory=[],
        local_disk=[],
        gpu_memory_limit=None,
    )
    return TinyRun(root, run, PlanFile(model=model, tokens_uri=tokens.as_uri(), data=index, plan=plan))


@dataclass
class Ranks:
    """What a group of ranks left: rank 0's messages, and each rank's end or failure."""

    messages: list[Any] = field(default_factory=list)
    ends: dict[int, Any] = field(default_factory=dict)

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    def end(self) -> Any:
        """Rank 0's end; raises a rank's failure."""
        for end in self.ends.values():
            if isinstance(end, CloisterError):
                raise end
        return self.ends[0]


def run_ranks(
    tiny: TinyRun,
    world_size: int = 1,
    watch: Callable[[Any, Callable[[str], None]], None] = lambda message, act: None,
    attempt: int = 1,
    as_if_large: bool = False,
) -> Ranks:
    """Run the worker function in `world_size` processes joined by gloo, and wait for their ends.

    `watch` sees each of rank 0's messages; its second argument acts: `stop` asks for a checkpoint and an end, `abort`
    for stacks and an end, `kill` ends all ranks with SIGKILL, `freeze` stops the last one with SIGSTOP. When a rank
    ends by itself without a result, the others are killed, as Ray would do.
    """
    from support import tiny_rank

    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found, request = Ranks(), context.Value("i", 0)
    pipes, processes = [], []
    for rank in range(world_size):
        mine, theirs = context.Pipe(duplex=False)
        task = tiny_rank.Task(
            tiny.run.model_dump_json(),
            tiny.plan.model_dump_json(),
            str(tiny.scratch),
            attempt,
            rank,
            world_size,
            port,
            as_if_large,
        )
        process = context.Process(target=tiny_rank.main, args=(task, theirs, request), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)

    def act(what: str) -> None:
        if what in {"stop", "abort"}:
            request.value = {"stop": 1, "abort": 2}[what]
        elif what == "kill":
            for process in processes:
                process.kill()
        else:
            os.kill(processes[-1].pid or 0, signal.SIGSTOP)

    def listen(rank: int) -> None:
        while True:
            try:
                message = pipes[rank].recv()
            except EOFError:
                return
            if isinstance(message, tiny_rank.RankEnd):
                found.ends[rank] = message.value
            elif rank == 0:
                found.messages.append(message)
                watch(message, act)

    listeners = [threading.Thread(target=listen, args=(rank,)) for rank in range(world_size)]
    try:
        for listener in listeners:
            listener.start()
        running = list(processes)
        while running:
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                running.remove(process)
                if process.exitcode != 0:
                    for other in running:
                        other.kill()
        for listener in listeners:
            listener.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return found
