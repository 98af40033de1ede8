"""publish: verify the staged adapter, write its immutable folder, and move the pointer to it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.reuse import reuse_key
from cloister_api.run import Run
from cloister_api.status import EvaluationStatus, GateResult, OutputStatus
from cloister_trainer.publish.adapter_checks import check_adapter
from cloister_trainer.publish.base_files import fetch_config
from cloister_trainer.publish.check import check_signed, judge_existing, load_key
from cloister_trainer.publish.cleanup import Clock, clean_up, planned_deletions, utc_now
from cloister_trainer.publish.digests import digest_bytes
from cloister_trainer.publish.facts import RunFacts
from cloister_trainer.publish.folder import SealedMeanwhileError, build_folder, upload_folder, write_signature
from cloister_trainer.publish.gate import gate_failure, judge_gate
from cloister_trainer.publish.manifest import ChecksSummary, Egress, Signature, build_manifest, collect_egress
from cloister_trainer.publish.metrics import first_and_last_time
from cloister_trainer.publish.pointer import LostRaceError, StoredPointer, move_pointer, read_pointer
from cloister_trainer.publish.sealed import SealedFolder, read_sealed, seal
from cloister_trainer.publish.sign import SIGNATURE_FILE, SIGNATURE_METHOD, SigningKey
from cloister_trainer.publish.staged import read_checks, read_staged
from cloister_trainer.records import PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage


@dataclass(frozen=True)
class Published:
    """What status shows of a published adapter."""

    output: OutputStatus
    checks: ChecksSummary
    egress: Egress
    """The proofs of this run's three steps."""

    def result(self) -> dict[str, Any]:
        """For the termination message."""
        end = {"step": self.checks.step, "totalSteps": self.checks.total_steps, "loss": self.checks.final_train_loss}
        return {"output": self.output.to_api(), "trained": end, **_findings(self.checks.evaluation, self.egress)}


def publish(
    run: Run,
    plan: PlanFile,
    storage: Storage,
    reporter: Reporter,
    scratch: Path,
    signing_key: Path | None = None,
    *,
    egress: Mapping[str, Any] | None = None,
    clock: Clock = utc_now,
) -> Published:
    """Publish the staged adapter of `run`; a run that is published already stays as it is.

    The folder's files are written first, manifest.json after them, current.json last, and only then is the run's data
    deleted: a crash anywhere leaves the output as it was or as it should be, and a second call finishes the work. With
    ifExists Reuse the returned output may be another run's equal adapter. `egress` is publish's own proof.

    Raises CloisterError: AdapterInvalid, EvaluationGateFailed with the evaluation as its result, OutputExists,
    SigningFailed, or the store's reasons.
    """
    key = load_key(run.spec.output.signing, signing_key)
    pointer = read_pointer(storage, run.output)
    reuse = reuse_key(run.spec, plan.model.fingerprint, plan.data.digest, plan.initial_adapter)
    existing = judge_existing(run, storage, pointer, reuse, key)
    if existing is None:
        while (sealed := _sealed_before(run, storage, key)) is None:
            scratch.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.suppress(SealedMeanwhileError),
                tempfile.TemporaryDirectory(prefix="publish-", dir=scratch) as folder,
            ):
                _write_folder(run, plan, storage, reporter, Path(folder), key, egress or {}, reuse, clock)
        sealed = _commit(run, storage, sealed, pointer, reuse, key)
        reporter.say(f"{run.output.pointer} names {sealed.status(run.spec.output.uri).uri}.")
    else:
        reporter.say(existing.message)
        sealed = existing.sealed
    clean_up(run, plan, sealed, storage, clock)
    return Published(
        sealed.status(run.spec.output.uri),
        sealed.manifest.checks,
        _egress_of_run(run, plan, storage, sealed, egress or {}),
    )


def _write_folder(
    run: Run,
    plan: PlanFile,
    storage: Storage,
    reporter: Reporter,
    scratch: Path,
    key: SigningKey | None,
    own_egress: Mapping[str, Any],
    reuse: str,
    clock: Clock,
) -> None:
    """Read staged, check, gate, build, upload, sign, seal. Raises SealedMeanwhileError."""
    paths = {name: scratch / name for name in ("staged", "model", "folder")}
    for path in paths.values():
        path.mkdir()
    staged = read_staged(run, storage, paths["staged"])
    fetch_config(storage, plan.model, paths["model"])
    adapter = check_adapter(staged.folder, paths["model"])
    gate = run.spec.evaluation.gate
    checks = staged.checks.model_copy(update={"gate": judge_gate(gate, staged.checks)})
    egress = collect_egress(run.spec.network.egress, plan.egress, checks.egress, own_egress)
    if gate is not None and checks.gate is GateResult.FAILED:
        findings = _findings(ChecksSummary.of(checks).evaluation, egress)
        raise gate_failure(gate, checks, run.layout.adapter, findings)
    reporter.say(f"The adapter is sound: {adapter.tensors} tensors, {adapter.parameters:,} parameters.")
    deletions = planned_deletions(run, plan)
    first, last = first_and_last_time(staged.metrics)
    facts = RunFacts(run, plan, checks, adapter, egress, deletions, first, last)
    folder = build_folder(facts, staged, storage, paths["folder"])
    files = upload_folder(folder, facts, storage, scratch, signed=key is not None)
    signature = None
    if key is not None:
        files.append(digest_bytes(SIGNATURE_FILE, write_signature(key, run, files, storage)))
        signature = Signature(file=SIGNATURE_FILE, method=SIGNATURE_METHOD, public_key_sha256=key.public.fingerprint)
    manifest = build_manifest(
        run,
        plan,
        checks,
        adapter,
        files,
        egress=egress,
        deletions=deletions,
        times=facts.times(clock().isoformat(timespec="seconds")),
        reuse_key=reuse,
        signature=signature,
    )
    seal(storage, run.output, manifest)


def _sealed_before(run: Run, storage: Storage, key: SigningKey | None) -> SealedFolder | None:
    """This run's complete folder, where only the pointer is missing.

    Raises CloisterError: OutputExists when the folder holds another adapter than the staged one, SigningFailed when
    `key` did not sign it: it is never changed.
    """
    sealed = read_sealed(storage, run.output)
    if sealed is None:
        return None
    check_signed(sealed, key)
    if sealed.adapter.sha256 != read_checks(run, storage).adapter.sha256:
        raise CloisterError(
            FailureReason.OUTPUT_EXISTS,
            f"{run.output.folder} is complete and holds another adapter than the one staged at {run.layout.adapter}. "
            "Published folders are never changed: delete that folder if nobody uses it, or choose another output.uri.",
        )
    return sealed


def _commit(
    run: Run,
    storage: Storage,
    sealed: SealedFolder,
    replaces: StoredPointer | None,
    reuse: str,
    key: SigningKey | None,
) -> SealedFolder:
    """Move the pointer from what it was when publish began to `sealed`; the folder that it names then.

    Raises CloisterError(OutputExists) when another run was faster, unless its adapter may be reused.
    """
    try:
        move_pointer(storage, run.output, sealed.pointer, replaces)
    except LostRaceError as error:
        now = read_pointer(storage, run.output)
        reused = judge_existing(run, storage, now, reuse, key)
        if reused is None:
            winner = f"run {now.pointer.uid}" if now is not None else "somebody"
            raise CloisterError(
                FailureReason.OUTPUT_EXISTS,
                f"While this run was publishing, {winner} changed {run.output.pointer}. This run's adapter is complete "
                f"at {sealed.status(run.spec.output.uri).uri}, and nothing names it. Publish again to decide anew.",
            ) from error
        return reused.sealed
    return sealed


def _egress_of_run(
    run: Run, plan: PlanFile, storage: Storage, published: SealedFolder, own: Mapping[str, Any]
) -> Egress:
    """This run's proofs: as its manifest has them, or collected where another run's adapter is taken."""
    if published.manifest.uid == run.uid:
        return published.manifest.egress
    return collect_egress(run.spec.network.egress, plan.egress, read_checks(run, storage).egress, own)


def _findings(evaluation: EvaluationStatus, egress: Egress) -> dict[str, Any]:
    return {"evaluation": evaluation.to_api(), "egress": egress.to_api()}
