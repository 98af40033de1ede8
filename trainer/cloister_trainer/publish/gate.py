"""evaluation.gate: an adapter that did not improve enough is not published."""

from __future__ import annotations

from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Gate
from cloister_api.status import GateResult
from cloister_trainer.records import Checks


def relative_improvement(checks: Checks) -> float | None:
    """(base loss - loss) / base loss on the validation examples; None when nothing was measured."""
    if checks.base_loss is None or checks.loss is None:
        return None
    return (checks.base_loss - checks.loss) / checks.base_loss if checks.base_loss > 0 else 0.0


def judge_gate(gate: Gate | None, checks: Checks) -> GateResult:
    """Whether the validation loss fell as far as `gate` asks; without a measured one it did not."""
    if gate is None:
        return GateResult.NONE
    improvement = relative_improvement(checks)
    reached = improvement is not None and improvement >= gate.min_relative_improvement
    return GateResult.PASSED if reached else GateResult.FAILED


def gate_failure(gate: Gate, checks: Checks, staged_uri: str, result: dict[str, Any]) -> CloisterError:
    """EvaluationGateFailed with the numbers and the step's `result`; the staged adapter stays."""
    asked = f"evaluation.gate asks for a validation loss at least {gate.min_relative_improvement:.1%} below the base's"
    stays = f"The adapter is not published; it stays staged at {staged_uri}."
    improvement = relative_improvement(checks)
    if improvement is None:
        message = f"{asked}, and no validation loss was measured. {stays} Give the dataset validation examples."
    else:
        message = (
            f"{asked}. The base model has {checks.base_loss:.4f} and the adapter {checks.loss:.4f}: "
            f"{improvement:.1%}. {stays} Lower the gate, or train longer or on more data."
        )
    return CloisterError(FailureReason.EVALUATION_GATE_FAILED, message, result=result)
