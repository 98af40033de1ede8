"""What publish does about the base model's licence: the NOTICE file, and the sentences of the card and of verify."""

from __future__ import annotations

from collections.abc import Mapping

from cloister_trainer.model.license_terms import LicenseTerms, terms_of, text_files
from cloister_trainer.publish.facts import RunFacts
from cloister_trainer.records import LicenseFinding

NOTICE_NAMES = ("NOTICE", "NOTICE.base-model")
"""The second where the base model has a NOTICE of its own that lacks the licence's line."""


def obligations(finding: LicenseFinding, name: str) -> list[str]:
    """What the licence asks, one sentence each, beginning with what lies ready in the folder of the adapter `name`."""
    terms = terms_of(finding.id)
    if terms is None:
        return ["No summary of this licence is known here: read its text before you use or pass on the adapter."]
    sentences = []
    if terms.text_must_travel:
        sentences.append(_about_text(text_files(finding)))
    if terms.notice is not None:
        sentences.append(f"Keep the notice file with every copy: {terms.notice}")
    if terms.display is not None:
        sentences.append(
            f'Show "{terms.display}" prominently on the website, in the product or in its documentation wherever '
            "others use the adapter."
        )
    if terms.name_begins_with is not None:
        sentences.append(
            f"When the adapter is passed on or offered to others, its name must begin with "
            f'"{terms.name_begins_with}", for example {distributed_name(terms, name)}.'
        )
    return [*sentences, *terms.clauses]


def _about_text(files: list[str]) -> str:
    if files:
        return f"Pass the licence's text on with every copy: {', '.join(files)}."
    return (
        "Pass the licence's text on with every copy. It was not in the base model's folder and is missing here: add it "
        "before the adapter leaves your hands."
    )


def distributed_name(terms: LicenseTerms, name: str) -> str:
    """The adapter's name as the licence wants it where others get it: `Llama-contracts`."""
    if terms.name_begins_with is None:
        return name
    first = terms.name_begins_with.replace(" ", "-")
    rest = name[len(first) :] if name.lower().startswith(first.lower()) else name
    return "-".join(filter(None, (first, rest.strip("-"))))


def notice_files(facts: RunFacts, copied: Mapping[str, bytes]) -> dict[str, bytes]:
    """The notice file that the licence asks for, by name, for the folder and for merged/.

    Empty when it asks for none or the base model's own notice, among the files `copied`, has the line already.
    """
    terms = terms_of(facts.plan.model.license.id)
    if terms is None or terms.notice is None:
        return {}
    notices = {
        name: data.decode(errors="replace") for name, data in copied.items() if name.upper().startswith("NOTICE")
    }
    if any(_plain(terms.notice) in _plain(text) for text in notices.values()):
        return {}
    taken = {name.upper() for name in notices}
    name = next(name for name in NOTICE_NAMES if name.upper() not in taken)
    merged = " merged/ holds that model with the changes in it." if facts.checks.merged_files else ""
    text = (
        f"{terms.notice}\n\nadapter_model.safetensors holds changes to the weights of {facts.base_name}, made by "
        f"training with Cloister.{merged} Other files of that model are copied unchanged.\n"
    ).encode()
    return {name: text, **({f"merged/{name}": text} if facts.checks.merged_files else {})}


def _plain(text: str) -> str:
    return " ".join(text.replace("(c)", "©").replace("(C)", "©").split()).lower()
