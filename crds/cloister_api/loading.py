"""Reading FineTuneJobs from YAML, with every problem of a file as one line: file, line, field, what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.job import API_VERSION, KIND, FineTuneJob
from cloister_api.places import misplaced
from cloister_api.problems import Problem, checked
from cloister_api.reasons import FailureReason
from cloister_api.text import printable
from cloister_api.yaml_tree import Document, UnreadableError, read_documents

MAX_PROBLEMS = 50


def load_jobs(path: Path | str) -> list[FineTuneJob]:
    """The FineTuneJobs in a YAML or JSON file, at least one.

    Raises CloisterError (SpecInvalid) with one line for each problem, of all documents in the file.
    """
    source = str(path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid([f"{source}: not UTF-8 text (at byte {error.start}); save the file as UTF-8"]) from None
    except OSError as error:
        raise _invalid([f"{source}: cannot be read: {error.strerror}"]) from None
    jobs, sentences = [], []
    for document in _documents(text, source):
        found = _check(document)
        if isinstance(found, FineTuneJob):
            jobs.append(found)
        else:
            sentences += _located(found, document, source)
    if sentences:
        raise _invalid(sentences)
    return jobs


def load_job(text: str, source: str) -> FineTuneJob:
    """The one FineTuneJob in a YAML or JSON text; `source` is its name in messages.

    Raises CloisterError (SpecInvalid) with one line for each problem.
    """
    documents = _documents(text, source)
    if len(documents) > 1:
        second = documents[1].line(())
        raise _invalid([f"{source}:{second}: expected one FineTuneJob, found {len(documents)} documents"])
    found = _check(documents[0])
    if isinstance(found, FineTuneJob):
        return found
    raise _invalid(_located(found, documents[0], source))


def _documents(text: str, source: str) -> list[Document]:
    try:
        documents = read_documents(text)
    except UnreadableError as error:
        where = f"{source}:{error.line}" if error.line else source
        raise _invalid([f"{where}: {error.sentence}"]) from None
    if not documents:
        raise _invalid([f"{source}: the file is empty; expected a {KIND}"])
    return documents


def _check(document: Document) -> FineTuneJob | list[Problem]:
    """The job in a document, or what is wrong with it (never an empty list)."""
    return check_job(document.value)


def check_job(value: Any) -> FineTuneJob | list[Problem]:
    """The job in a JSON value, without its status, or what is wrong with it (never an empty list)."""
    if problem := _other_kind(value):
        return [problem]
    job = checked(FineTuneJob, _without_nulls({key: part for key, part in value.items() if key != "status"}))
    return job if isinstance(job, list) else misplaced(job.spec) or job


def _other_kind(value: Any) -> Problem | None:
    if not isinstance(value, dict):
        found = "a list" if isinstance(value, list) else "text"
        return Problem((), f"expected a {KIND}, a mapping with apiVersion, kind, metadata and spec; found {found}")
    for field, expected in (("kind", KIND), ("apiVersion", API_VERSION)):
        if field not in value:
            return Problem((field,), f"missing; expected {field}: {expected}")
        if value[field] != expected:
            shown = value[field] if isinstance(value[field], str) else json.dumps(value[field])
            return Problem((field,), f"expected {expected}, found {shown[:80]}")
    return None


def _without_nulls(value: Any) -> Any:
    """`value` without fields that hold nothing, which the API server removes before it fills in defaults."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _located(problems: list[Problem], document: Document, source: str) -> list[str]:
    """One line for each problem, in the order of the file's lines."""
    lines = {problem: document.line(problem.path) for problem in problems}
    return [f"{source}:{lines[problem]}: {problem}" for problem in sorted(problems, key=lines.__getitem__)]


def _invalid(sentences: list[str]) -> CloisterError:
    shown = [printable(sentence) for sentence in sentences[:MAX_PROBLEMS]]
    if len(sentences) > MAX_PROBLEMS:
        shown.append(f"and {len(sentences) - MAX_PROBLEMS} more")
    return CloisterError(FailureReason.SPEC_INVALID, "\n".join(shown))
