"""Jobs for tests of the API: the smallest one with fields changed, and a table of every rule kept and broken.

The table is data, so that the same cases can be asked of pydantic and of an API server.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

REMOVED = object()
SMALLEST: dict[str, Any] = {
    "apiVersion": "cloister.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "contracts", "namespace": "legal"},
    "spec": {
        "model": {"uri": "s3://models/llama-3.1-8b-instruct"},
        "dataset": {"uri": "s3://datasets/contracts/train.jsonl"},
        "output": {"uri": "s3://adapters/legal/contracts"},
    },
}


def job_with(changes: dict[str, Any], base: dict[str, Any] = SMALLEST) -> dict[str, Any]:
    """`base` with fields set, by dotted path; REMOVED takes a field out."""
    job = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = job
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is REMOVED:
            del place[name]
        else:
            place[name] = copy.deepcopy(value)
    return job


@dataclass(frozen=True)
class RuleCase:
    """A change of the smallest job, and the sentence that refuses it; None when it is allowed."""

    changes: dict[str, Any]
    sentence: str | None = None

    def __str__(self) -> str:
        fields = ", ".join(f"{path.removeprefix('spec.')}" for path in self.changes)
        return f"{fields}: {self.sentence or 'allowed'}"


SOURCES = [{"uri": "s3://datasets/a"}, {"uri": "s3://datasets/b", "weight": 0}]
NO_VALIDATION = {"spec.dataset.validation": {"fraction": 0}}
ONE_OF_URI_INLINE = "chatTemplate takes exactly one of uri and inline"
ONE_OF_CACHE = "cache takes exactly one of size (an ephemeral volume) and claimName (an existing claim)"
ONE_OF_SOURCES = "dataset takes exactly one of uri and sources"
NF4 = "lora.quantization NF4 needs distribution.zeroStage 2 or lower"
OFFLOAD = "distribution.offload Parameters needs distribution.zeroStage 3"
DOTS = "a URI has no . or .. in its path"
HELD_OUT = "needs validation examples, and dataset.validation.fraction 0 holds out none"
RANKS = "lora.rankOverrides takes names of modules of 1 to 128 characters"
LONG_KEY = "x" * 318

RULE_CASES = [
    RuleCase({}),
    RuleCase({"spec.model.chatTemplate": {"uri": "s3://models/chatml.jinja"}}),
    RuleCase({"spec.model.chatTemplate": {"inline": "{{ messages }}"}}),
    RuleCase({"spec.model.chatTemplate": {}}, ONE_OF_URI_INLINE),
    RuleCase({"spec.model.chatTemplate": {"uri": "s3://m/t", "inline": "x"}}, ONE_OF_URI_INLINE),
    RuleCase({"spec.model.cache": {"size": "200Gi", "storageClassName": "fast"}}),
    RuleCase({"spec.model.cache": {"claimName": "weights"}}),
    RuleCase({"spec.model.cache": {}}, ONE_OF_CACHE),
    RuleCase({"spec.model.cache": {"size": "1Gi", "claimName": "weights"}}, ONE_OF_CACHE),
    RuleCase(
        {"spec.model.cache": {"claimName": "weights", "storageClassName": "fast"}},
        "cache.storageClassName goes with cache.size",
    ),
    RuleCase({"spec.dataset": {"sources": SOURCES}}),
    RuleCase({"spec.dataset": {}}, ONE_OF_SOURCES),
    RuleCase({"spec.dataset.sources": SOURCES}, ONE_OF_SOURCES),
    RuleCase(
        {"spec.dataset": {"sources": [{"uri": "s3://datasets/a", "weight": 0}]}},
        "dataset.sources needs at least one source with a weight above 0",
    ),
    RuleCase({"spec.dataset.tooLong": "Split", "spec.dataset.format": "Text"}),
    RuleCase({"spec.dataset.tooLong": "Split"}, "dataset.tooLong Split needs dataset.format Text"),
    RuleCase({"spec.dataset.validation": {"fraction": 0.1, "maxExamples": 10}}),
    RuleCase({"spec.dataset.validation": {"uri": "s3://datasets/held-out.jsonl"}}),
    RuleCase(
        {"spec.dataset.validation": {"fraction": 0.1, "uri": "s3://datasets/v"}},
        "validation takes at most one of fraction and uri",
    ),
    RuleCase({"spec.lora.targets": {"modules": ["q_proj"]}}),
    RuleCase(
        {"spec.lora.targets": {"preset": "Attention", "modules": ["q_proj"]}},
        "lora.targets.modules replaces the preset; leave lora.targets.preset out",
    ),
    RuleCase({"spec.lora.rankOverrides": {"down_proj": 64}}),
    RuleCase({"spec.lora.rankOverrides": {"x" * 129: 64}}, RANKS),
    RuleCase({"spec.distribution": {"workers": 4, "minWorkers": 4}}),
    RuleCase({"spec.distribution": {"minWorkers": 2}}, "distribution.minWorkers is at most distribution.workers"),
    RuleCase({"spec.distribution": {"offload": "Parameters", "zeroStage": 3}}),
    RuleCase({"spec.distribution": {"offload": "Parameters"}}, OFFLOAD),
    RuleCase({"spec.distribution": {"offload": "Parameters", "zeroStage": 2}}, OFFLOAD),
    RuleCase({"spec.lora.quantization": "NF4"}),
    RuleCase({"spec.lora.quantization": "NF4", "spec.distribution.zeroStage": 2}),
    RuleCase({"spec.lora.quantization": "NF4", "spec.distribution.zeroStage": 3}, NF4),
    RuleCase({"spec.evaluation.gate": {"minRelativeImprovement": 0.1}}),
    RuleCase({"spec.evaluation.gate": {"minRelativeImprovement": 0.1}, "spec.dataset.validation": {"fraction": 0.1}}),
    RuleCase({**NO_VALIDATION}),
    RuleCase({**NO_VALIDATION, "spec.evaluation.gate": {"minRelativeImprovement": 0}}, f"evaluation.gate {HELD_OUT}"),
    RuleCase({**NO_VALIDATION, "spec.evaluation.earlyStopping": {}}, f"evaluation.earlyStopping {HELD_OUT}"),
    RuleCase({**NO_VALIDATION, "spec.evaluation.samples": 1}, f"evaluation.samples {HELD_OUT}"),
    RuleCase({"spec.pods.worker.nodeSelector": {"gpu": "h100"}}),
    RuleCase({"spec.pods.worker.nodeSelector": {LONG_KEY: "x"}}, "names in nodeSelector have at most 317 characters"),
    RuleCase({"spec.pods.head.resources.requests": {LONG_KEY: 1}}, "names in requests have at most 317 characters"),
    RuleCase({"spec.pods.head.resources.limits": {LONG_KEY: 1}}, "names in limits have at most 317 characters"),
    RuleCase({"spec.model.uri": "s3://models/../secret"}, DOTS),
    RuleCase({"spec.model.uri": "pvc://claim/a/.."}, DOTS),
    RuleCase({"spec.output.uri": "s3://adapters/./x"}, DOTS),
    RuleCase({"spec.output.uri": "s3://adapters/v1.2/..x/.hidden"}),
]

OTHER_VALUES: dict[str, Any] = {
    "model": {"uri": "s3://models/other"},
    "dataset": {"uri": "s3://datasets/other"},
    "lora": {"rank": 8},
    "training": {"seed": 1},
    "distribution": {"workers": 2},
    "pods": {"worker": {"affinity": {"podAffinity": {}}}},
    "checkpoint": {"keep": 1},
    "evaluation": {"samples": 1},
    "output": {"uri": "s3://adapters/other"},
    "storage": {"secretName": "other"},
    "network": {"egress": "Open"},
    "resumeFrom": {"uri": "s3://runs/old"},
    "provenance": {"ticket": "X-1"},
    "backoffLimit": 1,
    "progressDeadlineSeconds": 60,
    "hold": "BeforeTraining",
    "suspend": True,
    "activeDeadlineSeconds": 60,
    "ttlSecondsAfterFinished": 60,
}
"""For every field of the spec a value that differs from the smallest job's."""
