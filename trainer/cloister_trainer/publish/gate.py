"""evaluation.gate: an adapter that did not improve enough is not published."""

from __future__ import annotations

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Gate
from cloister_api.status import EvaluationStatus, GateResult
from cloister_trainer.records import Checks


def relative_improvement(checks: Checks) -> float | None:
    """(base loss - loss) / base loss on the validation examples; None when nothing was measured."""
    if checks.base_loss is None or checks.loss is None:
        return None
    return (checks.base_loss - checks.loss) / checks.base_loss if checks.base_loss > 0 else 0.0


def pass_gate(gate: Gate | None, checks: Checks, staged_uri: str) -> Checks:
    """`checks` with the gate's result.

    Raises CloisterError(EvaluationGateFailed) with the numbers; the staged adapter stays.
    """
    if gate is None:
        return checks.model_copy(update={"gate": GateResult.NONE})
    asked = f"evaluation.gate asks for a validation loss at least {gate.min_relative_improvement:.1%} below the base's"
    stays = f"The adapter is not published; it stays staged at {staged_uri}."
    improvement = relative_improvement(checks)
    if improvement is None:
        raise CloisterError(
            FailureReason.EVALUATION_GATE_FAILED,
            f"{asked}, and no validation loss was measured. {stays} Give the dataset validation examples.",
        )
    if improvement < gate.min_relative_improvement:
        raise CloisterError(
            FailureReason.EVALUATION_GATE_FAILED,
            f"{asked}. The base model has {checks.base_loss:.4f} and the adapter {checks.loss:.4f}: "
            f"{improvement:.1%}. {stays} Lower the gate, or train longer or on more data.",
        )
    return checks.model_copy(update={"gate": GateResult.PASSED})


def evaluation_status(checks: Checks) -> EvaluationStatus:
    """What status.evaluation shows."""
    return EvaluationStatus(
        base_loss=checks.base_loss, loss=checks.loss, exact_match=checks.exact_match, gate=checks.gate
    )
