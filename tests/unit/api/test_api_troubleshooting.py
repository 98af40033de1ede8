"""The troubleshooting page: one section a reason, and each says what is seen, why, how to look and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister_api import generate
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.troubleshooting import CHAPTERS, PAGE, PARTS, WrongSectionsError, sections, with_sections
from cloister_operator.decide.messages import NEXT_STEPS
from support.operator_cases import CASES, Case

TEXT = (Path(__file__).resolve().parents[3] / PAGE).read_text()
WRITTEN = {name: text for chapter in TEXT.split("\n## ")[1:] for name, text in sections(chapter) if name}
WAITING = [reason for reason in NEXT_STEPS if reason != ConditionReason.PREPARING]
"""What a person may want to do something about."""


@pytest.mark.parametrize("reason", [*FailureReason, *ConditionReason])
def test_a_reason_without_a_section_gets_one_to_begin_with(reason: FailureReason | ConditionReason) -> None:
    without = TEXT.replace(WRITTEN[reason], "")
    assert f"### {reason}\n" not in without
    made = with_sections(without)
    assert made != without  # so that --check fails
    meaning = reason.facts.meaning if isinstance(reason, FailureReason) else reason.meaning
    headings = [line for line in made.splitlines() if line.startswith("### ")]
    assert headings == [f"### {each}" for each in (*FailureReason, *ConditionReason)]
    assert meaning in made


def test_a_section_of_no_reason_is_for_a_person_to_decide(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / PAGE
    page.parent.mkdir()
    page.write_text(TEXT.replace("### Internal\n", "### Interna\n"))
    monkeypatch.setattr(generate, "REPOSITORY", tmp_path)
    for arguments in (["--check"], []):
        assert generate.main(arguments) == 1
        assert "has a section Interna, which is no reason: rename or delete it" in capsys.readouterr().out
    assert "### Interna\n" in page.read_text()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_that_is_gone_is_missed(chapter: str) -> None:
    with pytest.raises(WrongSectionsError, match=chapter):
        with_sections(TEXT.replace(f"{chapter}\n", "## Other\n"))


def test_a_section_that_is_there_twice_is_told() -> None:
    with pytest.raises(WrongSectionsError, match="two sections"):
        with_sections(TEXT.replace("### Internal\n", "### KubeRayMissing\n"))


@pytest.mark.parametrize("reason", [*FailureReason, *WAITING])
def test_a_section_says_what_is_seen_why_and_what_to_do(reason: FailureReason | ConditionReason) -> None:
    text = WRITTEN[reason]
    needed = PARTS if isinstance(reason, FailureReason) else ("See", "Why", "Do")
    places = [text.find(f"**{part}**") for part in needed]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_seen_is_what_the_operator_says(case: Case) -> None:
    seen = WRITTEN[case.reason].partition("**Why**")[0]
    assert case.phase in seen, seen
    assert case.reason in seen
