"""The base model's licence: found in its files, stated in the job, or unknown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import LicenseEvidence, RunSettings
from cloister_trainer.model.families import Family
from cloister_trainer.model.license_texts import normal_id, recognise
from cloister_trainer.model.small_files import MODEL_CARD, is_license_file
from cloister_trainer.records import FileDigest, LicenseFinding

NOT_THE_MODEL = ("CODE", "THIRD")
"""Licence files with these words in their names speak of something else than the weights."""
UNNAMED = ("other", "unknown", None)
"""What a card's `license` says where it names none."""
MAX_FIELD_CHARACTERS = 1024


def find_license(
    folder: Path, small_files: Iterable[FileDigest], family: Family, stated: str | None, settings: RunSettings
) -> LicenseFinding:
    """The model's licence with the strongest evidence there is.

    In this order: the text of a licence file, the model card, the family's only usual licence; the last only where no
    file speaks of a licence. A stated licence must be one of those found in text or card; where neither says anything
    that is known it counts as stated.

    Raises LicenseUnknown when nothing is found or stated, when a file speaks of a licence that is not known and none is
    stated, or the files disagree and nothing decides between them;
    LicenseNotAllowed when the stated licence contradicts the files, or the administrator does not allow it.
    """
    digests = {file.name: file for file in small_files}
    copied = [name for name in digests if is_license_file(name)]
    found = [*_from_texts(folder, digests, copied), *_from_card(folder, digests, copied)]
    finding = _choose(found, family, stated, copied, _unread(folder, digests, copied))
    _check_allowed(finding, settings)
    return finding


def _from_texts(folder: Path, digests: dict[str, FileDigest], copied: list[str]) -> list[LicenseFinding]:
    """Recognised licence files; one that names the model comes first."""
    findings = []
    for name in sorted(copied, key=lambda name: ("MODEL" not in name.upper(), name)):
        if not _of_the_model(name):
            continue
        identifier = recognise((folder / name).read_text(encoding="utf-8", errors="replace"))
        if identifier:
            findings.append(
                LicenseFinding(
                    id=identifier, evidence="LicenseText", file=name, sha256=digests[name].sha256, files=copied
                )
            )
    return findings


def _from_card(folder: Path, digests: dict[str, FileDigest], copied: list[str]) -> list[LicenseFinding]:
    """The licences that the model card's front matter names."""
    if MODEL_CARD not in digests:
        return []
    fields = license_fields((folder / MODEL_CARD).read_text(encoding="utf-8", errors="replace"))
    names = fields.get("license")
    if names in UNNAMED:
        names = fields.get("license_name")
    named = names if isinstance(names, list) else [names]
    return [
        LicenseFinding(
            id=normal_id(name),
            evidence="ModelCard",
            file=MODEL_CARD,
            sha256=digests[MODEL_CARD].sha256,
            files=copied,
        )
        for name in named
        if isinstance(name, str) and name.strip()
    ]


def _of_the_model(name: str) -> bool:
    """Whether a licence file may speak of the weights."""
    return not any(word in name.upper() for word in NOT_THE_MODEL)


def _unread(folder: Path, digests: dict[str, FileDigest], copied: list[str]) -> list[str]:
    """Files that would speak of the model's licence, were they understood; they count where none was found."""
    names = [name for name in copied if _of_the_model(name)]
    if MODEL_CARD in digests:
        front, _ = _front_matter((folder / MODEL_CARD).read_text(encoding="utf-8", errors="replace"))
        if any("license" in line.lower() or "licence" in line.lower() for line in front):
            names.append(MODEL_CARD)
    return names


def _front_matter(card: str) -> tuple[list[str], bool]:
    """The card's lines between the first two `---` lines, and whether the second is there; else all lines count."""
    lines = [line.rstrip() for line in card.removeprefix("\ufeff").splitlines()]
    if not lines or lines[0] != "---":
        return [], False
    if "---" not in lines[1:]:
        return lines[1:], False
    return lines[1 : lines.index("---", 1)], True


def license_fields(card: str) -> dict[str, Any]:
    """`license` and `license_name` of the card's front matter, the YAML between the first two `---` lines.

    Only these two keys are parsed: the rest is often long, and its mistakes do not matter here. Empty where they do not
    parse.
    """
    front, closed = _front_matter(card)
    if not closed:
        return {}
    kept, inside = [], False
    for line in front:
        if line and line[0] not in " \t-#":
            inside = line.startswith(("license:", "license_name:"))
        if inside:
            kept.append(line)
    try:
        fields = YAML(typ="safe", pure=True).load("\n".join(kept)[:MAX_FIELD_CHARACTERS])
    except (YAMLError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _choose(
    found: list[LicenseFinding], family: Family, stated: str | None, copied: list[str], unread: list[str]
) -> LicenseFinding:
    different = list(dict.fromkeys(finding.id for finding in found))
    if stated is not None:
        agreeing = [finding for finding in found if finding.id == normal_id(stated)]
        if agreeing:
            return agreeing[0]
        if found:
            raise CloisterError(
                FailureReason.LICENSE_NOT_ALLOWED,
                f"model.license states {stated}, but the model's files say otherwise: {_places(found)}. "
                "Correct model.license, or use the model that it belongs to.",
            )
        return LicenseFinding(id=normal_id(stated), evidence="Stated", files=copied)
    if len(different) > 1:
        raise CloisterError(
            FailureReason.LICENSE_UNKNOWN,
            f"The model's files name different licences: {_places(found)}. "
            f"Say which one is meant, for example `license: {different[0]}` under spec.model.",
        )
    if found:
        return found[0]
    if unread:
        raise CloisterError(
            FailureReason.LICENSE_UNKNOWN,
            f"No known licence is named by {' and '.join(unread)}. Read what is said there, and state the model's "
            "licence (model.license) with the line `license: NAME` under spec.model.",
        )
    if len(family.licenses) == 1:
        return LicenseFinding(id=family.licenses[0], evidence="Family", files=copied)
    raise CloisterError(
        FailureReason.LICENSE_UNKNOWN,
        f"No licence was found in the model's files, and models of the family {family.title} have different ones. "
        f"Add a line under spec.model, for example `license: {family.licenses[0]}`.",
    )


def _check_allowed(finding: LicenseFinding, settings: RunSettings) -> None:
    allowed = [normal_id(name) for name in settings.allowed_licenses]
    if allowed and finding.id not in allowed:
        raise CloisterError(
            FailureReason.LICENSE_NOT_ALLOWED,
            f"The model's licence is {finding.id} ({finding.evidence}{f', {finding.file}' if finding.file else ''}); "
            f"the administrator allows {', '.join(allowed)}. Use another model, or ask the administrator.",
        )
    if settings.license_evidence is LicenseEvidence.FOUND and finding.evidence == "Stated":
        raise CloisterError(
            FailureReason.LICENSE_NOT_ALLOWED,
            f"The licence {finding.id} is only stated in model.license, and the administrator wants it found in the "
            "model's files. Add the model's LICENSE file or model card to its folder.",
        )


def _places(found: list[LicenseFinding]) -> str:
    return ", ".join(f"{finding.id} in {finding.file}" for finding in found)
