"""What YAML means to kubectl and a cluster, it means to Cloister's own loader."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister_api.job import FineTuneJobSpec
from cloister_api.loading import load_job
from cloister_api.yaml_tree import plain_value
from cluster.control_plane.access import Cluster, KubectlError
from support.yaml_words import BOOLEANS, NULLS, NUMBERS, WORDS

HEAD = """\
apiVersion: cloister.dev/v1alpha1
kind: FineTuneJob
metadata: {name: contracts}
"""
SPEC = """\
spec:
  model: {uri: s3://models/llama-3.1-8b-instruct}
  dataset: {uri: s3://datasets/contracts/train.jsonl}
  output: {uri: s3://adapters/legal/contracts}
"""
ALL_WORDS = [word for word in (*NUMBERS, *BOOLEANS, *NULLS, *WORDS) if word != "-"]
"""In a list, `- -` is a list in a list."""
WRITTEN = [
    "training: {learningRate: 2e-4}",
    "training: {learningRate: 2.e-4, maxSteps: 1e5}",
    "training: {maxSteps: 1_000, seed: 0x10, epochs: 1.}",
    "backoffLimit: 010",
    "suspend: on",
    "suspend: No",
    "training: {deterministic: y}",
    "lora: {dropout: .5, rank: 8}",
    "pods: {worker: {nodeSelector: {gpu: 'on', zone: \"5\"}}}",
    "pods: {worker: {resources: {limits: {cpu: 4, memory: 16Gi}}}}",
    "provenance: {ticket: 12:30, sourceRevision: 2024-01-01}",
]
REFUSED = [
    "training: {learningRate: '2e-4'}",
    "suspend: 'on'",
    "provenance: {ticket: 1e5}",
    "provenance: {ticket: on}",
    "training: {maxSteps: 1.5}",
]


def test_every_word_means_to_kubectl_what_it_means_to_the_loader(cluster: Cluster) -> None:
    listed = "".join(f"- {word}\n" for word in ALL_WORDS)
    text = f"{HEAD}spec:\n  words:\n{indented(listed)}"
    arguments = ["create", "--dry-run=client", "--validate=false", "--output=json", "--filename=-"]
    read = json.loads(cluster.kubectl(*arguments, text=text))["spec"]["words"]
    assert dict(zip(ALL_WORDS, read, strict=True)) == {word: plain_value(word) for word in ALL_WORDS}
    for word, value in zip(ALL_WORDS, read, strict=True):
        assert isinstance(value, bool) == isinstance(plain_value(word), bool), word


@pytest.mark.parametrize("written", WRITTEN)
def test_a_field_is_kept_with_the_value_that_the_loader_reads(cluster: Cluster, namespace: str, written: str) -> None:
    text = f"{HEAD}{SPEC}  {written}\n"
    assert FineTuneJobSpec.model_validate(server_reads(cluster, namespace, text)) == load_job(text, "job.yaml").spec


@pytest.mark.parametrize("written", REFUSED)
def test_a_field_of_another_type_is_refused_by_both(cluster: Cluster, namespace: str, written: str) -> None:
    text = f"{HEAD}{SPEC}  {written}\n"
    with pytest.raises(KubectlError, match=r"must be of type|unable to decode|Invalid value"):
        server_reads(cluster, namespace, text)
    with pytest.raises(Exception, match=r"job\.yaml:8: "):
        load_job(text, "job.yaml")


def server_reads(cluster: Cluster, namespace: str, text: str) -> dict[str, Any]:
    arguments = ["create", "--dry-run=server", "--output=json", "--filename=-"]
    spec: dict[str, Any] = json.loads(cluster.kubectl(*arguments, text=text, namespace=namespace))["spec"]
    return spec


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
