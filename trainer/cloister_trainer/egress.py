"""Proof that this process cannot reach what no network policy allows.

The operator listens on two addresses: `control`, which the job's policy allows, and `canary`, which no policy allows.
A process that reaches the first and not the second runs behind an enforced policy; a policy object alone proves nothing
about the network plugin.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_api.spec_cluster import Egress
from cloister_api.units import parse_duration

DIAL_TIMEOUT_S = 3.0
RETRY_INTERVAL_S = 5.0


def prove_egress(
    run: Run,
    *,
    patience_s: float | None = None,
    interval_s: float = RETRY_INTERVAL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Dial both addresses from this process, before it reads data.

    Returns `{processes, controlAnswered, canaryRefused, time}`; empty with network.egress Open, and where the
    administrator's requireEnforcedEgress is off and there is no address to dial. Raises CloisterError, unless it is
    off: EgressNotEnforced when the canary answers, EgressUnproven when control stays silent for the
    administrator's patience or an address is missing.
    """
    settings = run.settings
    if patience_s is None:
        patience_s = parse_duration(settings.control_patience)
    control, canary = settings.control_address, settings.canary_address
    if run.spec.network.egress is Egress.OPEN:
        return {}
    if control is None or canary is None:
        if settings.require_enforced_egress:
            raise CloisterError(
                FailureReason.EGRESS_UNPROVEN,
                "The run file names no control and canary address, so it cannot be shown that egress is restricted. "
                "The operator writes both; no data was read.",
            )
        return {}
    controlled = _answers_in_time(control, patience_s, interval_s, sleep)
    refused = not _answers(canary)
    if settings.require_enforced_egress:
        if not refused:
            raise CloisterError(
                FailureReason.EGRESS_NOT_ENFORCED,
                f"This pod reached {canary}, which no network policy allows: the network plugin does not enforce "
                "NetworkPolicies. Install one that does; no data was read.",
            )
        if not controlled:
            raise CloisterError(
                FailureReason.EGRESS_UNPROVEN,
                f"The operator's control port {control} did not answer for {patience_s:.0f} s, so it is not shown that "
                "egress is restricted. Check that the operator runs and that the job's pods may reach it.",
            )
    return {
        "processes": 1,
        "controlAnswered": int(controlled),
        "canaryRefused": int(refused),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def merge_proofs(proofs: list[dict[str, Any]]) -> dict[str, Any]:
    """The proofs of several processes as one: counts added, the newest time."""
    made = [proof for proof in proofs if proof]
    if not made:
        return {}
    counts = {key: sum(proof[key] for proof in made) for key in ("processes", "controlAnswered", "canaryRefused")}
    return {**counts, "time": max(proof["time"] for proof in made)}


def _answers_in_time(address: str, patience_s: float, interval_s: float, sleep: Callable[[float], None]) -> bool:
    deadline = time.monotonic() + patience_s
    while not _answers(address):
        if time.monotonic() >= deadline:
            return False
        sleep(interval_s)
    return True


def _answers(address: str) -> bool:
    """Whether the listener at host:port sends a fresh nonce back: a middlebox that accepts everything does not."""
    host, _, port = address.rpartition(":")
    nonce = f"cloister {secrets.token_hex(16)}\n".encode()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_TIMEOUT_S) as connection:
            connection.sendall(nonce)
            with connection.makefile("rb") as stream:
                return stream.readline(len(nonce)) == nonce
    except OSError:
        return False
