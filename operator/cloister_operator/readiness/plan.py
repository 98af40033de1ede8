"""What the chart asks for: manifests and expectations, in a file that it mounts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister_operator.readiness.facts import Expectations

PLAN_FILE = Path("/etc/cloister-readiness/plan.json")

Object = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to make and what to look at."""

    inputs: Object
    """The Job that writes the model and the rows."""
    job: Object
    """The FineTuneJob."""
    host_names: tuple[str, ...]
    """Names that jobs' pods must resolve."""
    kueue_namespace: str
    timeout_s: float
    """How long the inputs and the FineTuneJob may take together."""
    patience_s: float
    """How long a pod may wait for an image or a Secret, where a kubelet tries again and again, and what an earlier test
    left may take to go."""
    expected: Expectations


def read_plan(path: Path, patience_s: float) -> Plan:
    """The plan in a JSON file of the chart."""
    found = json.loads(path.read_text())
    expected = found["expected"]
    return Plan(
        inputs=found["inputs"],
        job=found["job"],
        host_names=tuple(found["hostNames"]),
        kueue_namespace=found["kueueNamespace"],
        timeout_s=60.0 * found["timeoutMinutes"],
        patience_s=patience_s,
        expected=Expectations(
            gpu_resources=tuple(expected["gpuResources"]),
            gpu_optional=expected["gpuOptional"],
            kuberay_labels=expected["kuberayLabels"],
            kueue_required=expected["kueueRequired"],
            namespace=found["job"]["metadata"]["namespace"],
            inputs_name=found["inputs"]["metadata"]["name"],
            job_name=found["job"]["metadata"]["name"],
        ),
    )
