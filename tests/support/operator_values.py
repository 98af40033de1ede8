"""What tests of the operator begin with: the administrator's settings, and what steps that went well have told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cloister_operator.settings import Settings
from cloister_operator.settings_file import parse_settings

START = datetime(2026, 1, 2, 2, 10, tzinfo=UTC)
SETTINGS_YAML = """
images: {trainer: registry.internal/cloister/trainer@sha256:0123}
profiles:
  default: {gpuMemory: 80Gi}
storage:
  endpoint: http://store.storage.svc:8333
  peers: [{namespaceLabels: {kubernetes.io/metadata.name: storage}, podLabels: {app: store}, ports: [8333]}]
network:
  controlAddress: control.cloister-system.svc:8444
  canaryAddress: canary.cloister-system.svc:8445
"""
PLAN = {
    "zeroStage": 2,
    "microBatchTokens": 4096,
    "gradientCheckpointing": True,
    "totalSteps": 120,
    "trainableParameters": 41943040,
    "baseParameters": 8030261248,
    "examples": 640,
    "tokens": 400000,
    "trainedTokens": 200000,
    "estimatedGpuMemoryBytes": 40000000000,
    "warnings": [],
}
PROOF = {"processes": 1, "controlAnswered": 1, "canaryRefused": 1, "time": "2026-01-02T02:11:00+00:00"}
OUTPUT = {
    "uri": "s3://adapters/legal/contracts/u",
    "manifestDigest": "a" * 64,
    "adapterDigest": "b" * 64,
    "sizeBytes": 83886080,
}
PREPARED = {"plan": PLAN, "license": {"id": "llama3.1", "evidence": "LicenseText"}, "egress": PROOF}
PROOFS = {"prepare": PROOF, "train": PROOF, "publish": PROOF, "summary": "3 of 3 processes: …"}
PUBLISHED = {"output": OUTPUT, "evaluation": {"baseLoss": 1.5, "loss": 0.5, "gate": "None"}, "egress": PROOFS}


def settings(**changes: Any) -> Settings:
    """Settings as tests need them, with top-level fields changed."""
    return Settings.model_validate({**parse_settings(SETTINGS_YAML, "settings").to_api(), **changes})


def stamp(moment: datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
