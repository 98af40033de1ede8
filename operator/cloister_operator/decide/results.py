"""What prepare and publish report, from their termination messages; a result of another form is no result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

from cloister_api.base import ApiModel
from cloister_api.problems import checked
from cloister_api.status import EvaluationStatus, LicenseStatus, OutputStatus, PlanStatus

Part = TypeVar("Part", bound=ApiModel)


@dataclass(frozen=True)
class EgressProof:
    """How many processes proved that they reach the control address and not the canary."""

    processes: int = 0
    control_answered: int = 0
    canary_refused: int = 0


@dataclass(frozen=True)
class Prepared:
    """What prepare found: a plan, or an adapter that was made from the same inputs before."""

    plan: PlanStatus | None
    license: LicenseStatus | None
    reused: OutputStatus | None
    evaluation: EvaluationStatus | None
    egress: EgressProof
    message: str
    staged: bool = False
    """The adapter was trained before, by the run in resumeFrom."""


@dataclass(frozen=True)
class Trained:
    """Where training ended."""

    step: int
    total_steps: int
    loss: float


@dataclass(frozen=True)
class Published:
    """What publish left."""

    output: OutputStatus
    trained: Trained | None
    evaluation: EvaluationStatus | None
    egress: EgressProof


def read_prepared(result: Mapping[str, Any]) -> Prepared | None:
    """prepare's result."""
    plan, reused = _part(PlanStatus, result, "plan"), _part(OutputStatus, result, "reused")
    if plan is None and reused is None:
        return None
    message = result.get("message", "")
    return Prepared(
        plan=plan,
        license=_part(LicenseStatus, result, "license"),
        reused=reused,
        evaluation=evaluation_of(result),
        egress=_proof(result),
        message=message if isinstance(message, str) else "",
        staged=result.get("staged") is True,
    )


def read_published(result: Mapping[str, Any]) -> Published | None:
    """publish's result."""
    output = _part(OutputStatus, result, "output")
    if output is None:
        return None
    return Published(output, _trained(result), evaluation_of(result), _proof_of_steps(result))


def evaluation_of(result: Mapping[str, Any]) -> EvaluationStatus | None:
    """The measurements in a result."""
    return _part(EvaluationStatus, result, "evaluation")


def _trained(result: Mapping[str, Any]) -> Trained | None:
    found = result.get("trained")
    if not isinstance(found, dict):
        return None
    step, total, loss = (found.get(name) for name in ("step", "totalSteps", "loss"))
    if type(step) is int and type(total) is int and 0 <= step <= total and isinstance(loss, float) and isfinite(loss):
        return Trained(step, total, loss)
    return None


def _part(model: type[Part], result: Mapping[str, Any], key: str) -> Part | None:
    if not isinstance(result.get(key), dict):
        return None
    found = checked(model, result[key])
    return None if isinstance(found, list) else found


def _proof(result: Mapping[str, Any], key: str = "egress") -> EgressProof:
    """The proof of one step's processes."""
    found = result.get(key)
    counts = [found.get(name) if isinstance(found, dict) else None for name in _COUNTS]
    return EgressProof(*(count if type(count) is int else 0 for count in counts))


def _proof_of_steps(result: Mapping[str, Any]) -> EgressProof:
    """The proofs of all steps together, as publish reports them; where one has none, nothing is proven."""
    found = result.get("egress")
    proofs = [_proof(found if isinstance(found, dict) else {}, step) for step in _STEPS]
    if not all(proof.processes for proof in proofs):
        return EgressProof()
    return EgressProof(
        sum(proof.processes for proof in proofs),
        sum(proof.control_answered for proof in proofs),
        sum(proof.canary_refused for proof in proofs),
    )


_STEPS = ("prepare", "train", "publish")
_COUNTS = ("processes", "controlAnswered", "canaryRefused")
