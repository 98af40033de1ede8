"""The one page of `cloister verify` that a compliance officer reads and signs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from cloister_api.text import printable
from cloister_trainer.publish.manifest import Manifest
from cloister_trainer.publish.obligations import obligations
from cloister_trainer.publish.verify import Result, VerifyReport

WIDTH = 100
LABEL = 22
MARKS = {Result.PASSED: "ok", Result.FAILED: "FAILED", Result.NOT_CHECKED: "not checked"}


def render_page(report: VerifyReport) -> str:
    """Plain text, at most WIDTH columns wide but for URIs."""
    verdict = "VERIFIED" if report.ok else "NOT VERIFIED: do not use this adapter"
    lines = ["=" * WIDTH, f"Adapter verification: {verdict}", "=" * WIDTH, *_row("Folder", report.uri)]
    if report.manifest is not None:
        lines += _row("Manifest", f"sha256 {report.manifest_digest}")
        lines += _facts(report.manifest, report)
    lines += ["", "Checks"]
    for check in report.checks:
        lines += _row(f"  {check.name}", f"{MARKS[check.result]}: {check.detail}")
    if report.not_proven:
        lines += ["", "Not proven by this page"]
        for sentence in report.not_proven:
            lines += textwrap.wrap(sentence, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    lines += ["", "Name ______________________________   Date ______________   Signature ______________________"]
    return "\n".join(printable(line) for line in lines)


def _facts(manifest: Manifest, report: VerifyReport) -> Iterator[str]:
    model, data, checks = manifest.base_model, manifest.dataset, manifest.checks
    evidence = ", ".join(filter(None, [model.license.evidence, model.license.file]))
    yield from _row("Run", f"{manifest.namespace}/{manifest.name}, uid {manifest.uid}")
    yield from _row("Published", manifest.times.published)
    yield from _row("Asked by (stated)", _asked_by(manifest))
    yield ""
    yield from _row("Base model", f"{model.uri} ({model.architecture}, {model.parameters:,} parameters)")
    yield from _row("", f"sha256 {model.digest}")
    yield from _row("Licence", f"{model.license.id} (evidence: {evidence})")
    if model.license.sha256:
        yield from _row("", f"sha256 {model.license.sha256}")
    for number, sentence in enumerate(obligations(model.license, manifest.name)):
        yield from _row("Licence asks" if number == 0 else "", sentence)
    yield from _row("Data", ", ".join(data.uris))
    yield from _row("", f"sha256 {data.digest}")
    yield from _row("", f"{data.epoch_examples:,} examples in an epoch, {data.validation_examples:,} held out")
    yield from _row("Network access", manifest.egress.summary)
    yield from _row("Run data", _run_data(manifest, report))
    if checks.base_loss is not None and checks.loss is not None:
        numbers = f"{checks.base_loss:.4f} before, {checks.loss:.4f} after, on held-out examples"
        yield from _row("Loss", f"{numbers} (gate: {checks.gate})")
    if checks.exact_match is not None:
        match = checks.exact_match
        yield from _row("Exact match", f"{match.before} of {match.rows} before, {match.after} after")


def _asked_by(manifest: Manifest) -> str:
    if manifest.provenance is None:
        return "not stated"
    return ", ".join(f"{name}: {value}" for name, value in manifest.provenance.to_api().items()) or "not stated"


def _run_data(manifest: Manifest, report: VerifyReport) -> str:
    """What became of tokens and checkpoints."""
    kept = [deletion.what for deletion in manifest.deletions if deletion.when == "Kept"]
    gone = [deletion.what for deletion in manifest.deletions if deletion.when == "AfterPublication"]
    parts = [f"kept: {', '.join(kept)}"] if kept else []
    if gone and report.deleted is not None:
        parts.append(f"deleted at {report.deleted.time}: {', '.join(gone)}")
    elif gone:
        parts.append(f"to be deleted after publication: {', '.join(gone)} (no record of it can be read here)")
    return "; ".join(parts)


def _row(label: str, text: str) -> list[str]:
    indent = " " * LABEL
    lines = textwrap.wrap(text, WIDTH - LABEL, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{label:<{LABEL - 1}} {lines[0]}".rstrip(), *(indent + line for line in lines[1:])]
