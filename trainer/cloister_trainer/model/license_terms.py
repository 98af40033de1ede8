"""What a base model's licence asks of whoever passes on an adapter of it, as data.

The sentences are a summary; the licence's text is what holds. `notice` and `display` are its own words.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister_trainer.records import LicenseFinding


@dataclass(frozen=True)
class LicenseTerms:
    """One licence's obligations."""

    id: str
    """As `normal_id` writes it."""
    title: str
    text_must_travel: bool = True
    """Whoever gets the adapter must get the licence's text with it."""
    notice: str | None = None
    """The line that a file called NOTICE must hold."""
    display: str | None = None
    """Words that a product's page or documentation must show."""
    name_begins_with: str | None = None
    """How the name of a model that is passed on must begin."""
    clauses: tuple[str, ...] = ()
    """Everything else worth knowing before the adapter is used or passed on."""


_USE_RESTRICTIONS_PASSED_ON = (
    "Put the licence's restrictions of use, as a binding term, into every agreement under which others use or get the "
    "adapter, and tell them of it."
)
_NO_OTHER_MODEL = (
    "The model and its answers must not be used to improve another large language model that was not made from it."
)
_RESEARCH_ONLY = "Research and other non-commercial purposes only; anything else needs a licence of its own from {}."


def _llama(version: str, date: str) -> LicenseTerms:
    name = f"Llama {version}"
    return LicenseTerms(
        id=f"llama{version}",
        title=f"{name} Community License Agreement",
        notice=f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.",
        display="Built with Llama",
        name_begins_with="Llama",
        clauses=_llama_clauses(f"llama.com/llama{version.replace('.', '_')}/use-policy", date),
    )


def _llama_clauses(policy: str, date: str) -> tuple[str, ...]:
    return (
        f"Whoever had more than 700 million monthly active users in the month before {date} (all products and "
        "affiliates together) has no rights under it and must ask Meta for a licence.",
        f"Use must keep to Meta's Acceptable Use Policy ({policy}), which is part of the licence.",
    )


LICENSE_TERMS: tuple[LicenseTerms, ...] = (
    LicenseTerms(
        "llama2",
        "Llama 2 Community License Agreement",
        notice="Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
        "All Rights Reserved.",
        clauses=(
            *_llama_clauses("ai.meta.com/llama/use-policy", "18 July 2023"),
            _NO_OTHER_MODEL,
        ),
    ),
    LicenseTerms(
        "llama3",
        "Meta Llama 3 Community License Agreement",
        notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.",
        display="Built with Meta Llama 3",
        name_begins_with="Llama 3",
        clauses=(
            *_llama_clauses("llama.meta.com/llama3/use-policy", "18 April 2024"),
            _NO_OTHER_MODEL,
        ),
    ),
    _llama("3.1", "23 July 2024"),
    _llama("3.2", "25 September 2024"),
    _llama("3.3", "6 December 2024"),
    _llama("4", "5 April 2025"),
    LicenseTerms(
        "gemma",
        "Gemma Terms of Use",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        clauses=(
            _USE_RESTRICTIONS_PASSED_ON,
            "Use must keep to the Gemma Prohibited Use Policy (ai.google.dev/gemma/prohibited_use_policy); Google may "
            "restrict use that does not.",
        ),
    ),
    LicenseTerms(
        "qwen",
        "Qwen License Agreement",
        notice="Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved.",
        display="Built with Qwen",
        clauses=(
            "A commercial product or service with more than 100 million monthly active users needs a licence from "
            "Alibaba Cloud.",
        ),
    ),
    LicenseTerms(
        "qwen-research",
        "Qwen Research License Agreement",
        notice="Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. "
        "All Rights Reserved.",
        display="Built with Qwen",
        clauses=(_RESEARCH_ONLY.format("Alibaba Cloud"),),
    ),
    LicenseTerms(
        "tongyi-qianwen",
        "Tongyi Qianwen License Agreement",
        notice="Tongyi Qianwen is licensed under the Tongyi Qianwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. "
        "All Rights Reserved.",
        clauses=(
            "A commercial product or service with more than 100 million monthly active users needs a licence from "
            "Alibaba Cloud.",
            _NO_OTHER_MODEL,
        ),
    ),
    LicenseTerms(
        "deepseek",
        "DeepSeek License Agreement",
        clauses=(
            _USE_RESTRICTIONS_PASSED_ON,
            "Its Attachment A lists uses that are forbidden, military use and fully automated decisions against "
            "somebody's rights among them.",
        ),
    ),
    LicenseTerms(
        "minimax",
        "MiniMax Model License Agreement",
        clauses=(
            "The licence asks for an attribution line in a file called NOTICE: copy it from the text that came with "
            "the model, since it differs between its versions.",
            "It forbids unlawful and harmful uses; some versions bound commercial use by users or revenue.",
        ),
    ),
    LicenseTerms(
        "mrl",
        "Mistral AI Research License",
        notice="Licensed by Mistral AI under the Mistral AI Research License",
        clauses=(
            _RESEARCH_ONLY.format("Mistral AI"),
            "A commercial entity must not pass it on, free of charge or not.",
        ),
    ),
    LicenseTerms(
        "mnpl",
        "Mistral AI Non-Production License",
        notice="Licensed by Mistral AI under the Mistral AI Non-Production License",
        clauses=(
            "Testing, research and evaluation outside of production only; anything else needs a licence of its own "
            "from Mistral AI.",
        ),
    ),
    LicenseTerms(
        "modified-mit",
        "Modified MIT License",
        clauses=(
            "A commercial product above the users or revenue that the licence names (100 million monthly active users "
            "or 20 million US dollars a month for Kimi K2) must show the model's name prominently.",
        ),
    ),
    LicenseTerms("apache-2.0", "Apache License 2.0"),
    LicenseTerms("mit", "MIT License"),
    LicenseTerms("bsd-3-clause", "BSD 3-Clause License"),
    LicenseTerms("bsd-2-clause", "BSD 2-Clause License"),
    LicenseTerms(
        "cc-by-nc-4.0",
        "Creative Commons Attribution-NonCommercial 4.0",
        text_must_travel=False,
        clauses=("Non-commercial purposes only.", "Name the authors, link to the licence, and say what was changed."),
    ),
    LicenseTerms(
        "cc-by-nc-sa-4.0",
        "Creative Commons Attribution-NonCommercial-ShareAlike 4.0",
        text_must_travel=False,
        clauses=(
            "Non-commercial purposes only, and what is made from it must have the same licence.",
            "Name the authors, link to the licence, and say what was changed.",
        ),
    ),
    LicenseTerms(
        "cc-by-4.0",
        "Creative Commons Attribution 4.0",
        text_must_travel=False,
        clauses=("Name the authors, link to the licence, and say what was changed.",),
    ),
)

TEXT_FILES = ("LICENSE", "LICENCE", "COPYING")
"""How the names of files with a licence's text begin, in upper case."""

_BY_ID = {terms.id: terms for terms in LICENSE_TERMS}


def terms_of(license_id: str) -> LicenseTerms | None:
    """The obligations of a licence, None for one whose terms are not written down here."""
    return _BY_ID.get(license_id.lower())


def text_files(finding: LicenseFinding) -> list[str]:
    """The licence's texts among the files that travel with the adapter; notices and policies are none."""
    return [name for name in finding.files if name.upper().startswith(TEXT_FILES)]


def license_warnings(finding: LicenseFinding) -> list[str]:
    """What is missing for the licence's terms to be kept. MIT's and Apache's texts are found everywhere; a model's own
    licence is not."""
    terms = terms_of(finding.id)
    if terms is None or not terms.text_must_travel or not terms.clauses or text_files(finding):
        return []
    return [
        f"The licence ({terms.title}) must travel with the adapter, and the model's folder has no text of it. Put the "
        "model's LICENSE beside its weights."
    ]
