"""What licences ask, as data: each row is reached by the identifier that prepare finds."""

from __future__ import annotations

import pytest

from cloister_trainer.model.license_terms import LICENSE_TERMS, terms_of, text_files
from cloister_trainer.model.license_texts import ALIASES, LICENSE_TEXTS, normal_id
from cloister_trainer.records import LicenseFinding

LLAMAS = ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4")


def test_every_row_has_an_identifier_that_prepare_writes() -> None:
    known = {text.id for text in LICENSE_TEXTS} | set(ALIASES.values())
    assert {terms.id for terms in LICENSE_TERMS} <= known
    assert len({terms.id for terms in LICENSE_TERMS}) == len(LICENSE_TERMS)
    assert all(normal_id(terms.id) == terms.id for terms in LICENSE_TERMS)


@pytest.mark.parametrize("license_id", LLAMAS)
def test_every_llama_wants_its_text_its_notice_and_bounds_its_users(license_id: str) -> None:
    terms = terms_of(license_id)
    assert terms is not None and terms.text_must_travel
    assert terms.notice is not None and terms.notice.endswith("Meta Platforms, Inc. All Rights Reserved.")
    assert any("700 million" in clause for clause in terms.clauses)
    assert any("Acceptable Use Policy" in clause for clause in terms.clauses)


@pytest.mark.parametrize(
    ("license_id", "display", "name"),
    [
        ("llama2", None, None),
        ("llama3", "Built with Meta Llama 3", "Llama 3"),
        ("llama3.1", "Built with Llama", "Llama"),
        ("llama3.2", "Built with Llama", "Llama"),
        ("llama3.3", "Built with Llama", "Llama"),
        ("llama4", "Built with Llama", "Llama"),
        ("qwen", "Built with Qwen", None),
        ("qwen-research", "Built with Qwen", None),
        ("gemma", None, None),
        ("mit", None, None),
    ],
)
def test_words_to_show_and_names_differ_by_version(license_id: str, display: str | None, name: str | None) -> None:
    terms = terms_of(license_id.upper())
    assert terms is not None
    assert (terms.display, terms.name_begins_with) == (display, name)


def test_the_notice_names_the_version() -> None:
    for version in ("3.1", "3.2", "3.3", "4"):
        terms = terms_of(f"llama{version}")
        assert terms is not None
        assert terms.notice == (
            f"Llama {version} is licensed under the Llama {version} Community License, "
            "Copyright © Meta Platforms, Inc. All Rights Reserved."
        )


def test_a_licence_that_is_not_written_down_has_no_terms() -> None:
    assert terms_of("our-own-licence") is None


def test_a_notice_and_a_policy_are_no_text_of_a_licence() -> None:
    files = ["LICENSE.txt", "NOTICE", "USE_POLICY.md", "License", "COPYING"]
    finding = LicenseFinding(id="llama3.1", evidence="ModelCard", files=files)
    assert text_files(finding) == ["LICENSE.txt", "License", "COPYING"]
