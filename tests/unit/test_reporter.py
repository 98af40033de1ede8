"""What a person reads is what was meant: no emoji, no styles, no escape codes out of data; a reader may leave."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from cloister_api.text import masked, printable
from cloister_trainer.cli.preview import drawn
from cloister_trainer.reporter import PlainConsole, Reporter

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


@pytest.mark.parametrize("sentence", ["a.yaml:100: spec.model", "LEGAL:key:7", "[bold]x[/bold] [[trained]]"])
def test_sentences_and_results_are_printed_as_they_are(sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.result(sentence)
    reporter.say(sentence)
    reporter.fail("SpecInvalid", sentence)
    reporter.warn(sentence)
    said = capsys.readouterr()
    assert said.out == f"{sentence}\n"
    assert said.err == f"{sentence}\nSpecInvalid: {sentence}\nWarning: {sentence}\n"


def test_no_escape_code_of_a_name_or_a_row_reaches_the_terminal() -> None:
    heard = io.StringIO()
    Reporter(PlainConsole(heard, soft_wrap=True)).say(f"{ESCAPE}one\n\ttwo")
    assert heard.getvalue() == "?]0;owned??[2Jone\n\ttwo\n".replace("\t", " " * 8)
    assert drawn([(ESCAPE, False), ("a\nb", True)], in_colour=False).plain == "?]0;owned??[2J[[a\nb]]"
    assert printable("caf\xe9 \u202e\ud800\x9b\n") == "caf\xe9 ????"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://KEY:SECRET@models/x", "s3://***@models/x"),
        ("s3://KEY:SEC/RET@models/x", "s3://***@models/x"),
        ("https://KEY@host", "https://***@host"),
        ("http:/KEY:SECRET@host", "***@host"),
        ("KEY:SECRET@host:8333", "***@host:8333"),
        ("KEY:SECRET@s3://host", "***@s3://host"),
        ("s3://models/a@b", "s3://models/a@b"),
        ("s3://models/a", "s3://models/a"),
    ],
)
def test_what_stands_before_an_at_sign_is_masked(given: str, shown: str) -> None:
    assert masked(given) == shown


def test_the_work_goes_on_when_nobody_reads_its_output() -> None:
    """Both kinds of output: results, and the event lines of a training."""
    script = """
import sys
from cloister_api.events import CheckpointSaved
from cloister_trainer.reporter import Reporter
from cloister_trainer.steps import EventWriter

class Context:
    lines, attempt = True, 1
    class run:
        uid = "u"

if sys.argv[1] == "lines":
    emit = EventWriter(Context)
    for step in range(3):
        emit(CheckpointSaved(step=step, uri="s3://b/x"))
reporter = Reporter()
for _ in range(3):
    reporter.result("done")
sys.exit(7)
"""
    for kind in ("lines", "results"):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-c", script, kind]
        ended = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (ended.returncode, ended.stderr) == (7, "")
