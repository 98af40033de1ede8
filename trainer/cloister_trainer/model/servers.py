"""Whether inference servers will load the adapter, checked before training."""

from __future__ import annotations

from collections.abc import Sequence

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_cluster import Server
from cloister_trainer.model.families import Family
from cloister_trainer.model.targets import Targets

VLLM_DEFAULT_RANK = 16
"""vLLM's --max-lora-rank when it is not given."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that --max-lora-rank takes."""
NAMES = {Server.VLLM: "vLLM", Server.LLAMA_CPP: "llama.cpp"}


def check_servers(
    servers: Sequence[Server], family: Family, targets: Targets, *, rank_stabilized: bool = False
) -> list[str]:
    """What whoever serves the adapter must know, one sentence each.

    Raises SpecInvalid when a server in output.servableBy does not load LoRA adapters of this family, or not those of
    fused experts, or not at the scale they are trained with.
    """
    notes = []
    for server in servers:
        name = NAMES[server]
        if server not in family.servers:
            raise _refused(f"{name} is not known to load LoRA adapters of {family.title}", server)
        if targets.parameters:
            raise _refused(
                f"{name} does not load adapters of routed experts; "
                "use lora.targets.preset Auto, which adapts attention and shared MLP",
                server,
            )
        if server is Server.LLAMA_CPP and rank_stabilized:
            raise _refused(
                f"{name} scales every adapter by alpha / rank, and this one is to be trained with alpha / sqrt(rank); "
                "leave lora.rankStabilized out, and set lora.alpha to alpha * sqrt(rank) for the same scale",
                server,
            )
        rank = max(targets.ranks.values())
        if server is Server.VLLM and rank > VLLM_DEFAULT_RANK:
            needed = next(size for size in VLLM_RANKS if size >= rank)
            notes.append(f"vLLM loads an adapter of rank {rank} only when started with --max-lora-rank {needed}.")
    return notes


def _refused(what: str, server: Server) -> CloisterError:
    return CloisterError(
        FailureReason.SPEC_INVALID, f"output.servableBy asks for {server.value}, but {what}. Change one of them."
    )
