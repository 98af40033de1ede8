"""What each image must be able to do, run as a pod runs it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from images.engine import Engine
from images.image import ROOT, Image

INSIDE = Path(__file__).parent / "inside"
SETTINGS = ROOT / "operator" / "manifests" / "settings.yaml"
SHOWN_LINES = 40


@dataclass(frozen=True)
class Check:
    """A command in a container, and what it must answer."""

    title: str
    command: tuple[str, ...]
    script: str = ""
    """A file in `inside`, given to the command on its standard input."""
    says: str = ""
    """What its output must hold."""
    code: int = 0
    mounts: Mapping[Path, str] = field(default_factory=dict)


def _script(title: str, script: str, *arguments: str, says: str = "") -> Check:
    return Check(title, ("python", "-", *arguments), script, says)


def _confined(may_lack_bytecode: str = "^$") -> Check:
    return _script("is confined and holds no tools", "confined.py", may_lack_bytecode)


OPERATOR = ("python", "-m", "cloister_operator")
CHECKS = {
    "operator": (
        _confined("kubernetes/(aio/)?client/(api|models)/"),
        Check("says what it takes", (*OPERATOR, "--help"), says="--settings"),
        Check(
            "accepts settings",
            (*OPERATOR, "--check"),
            says="The settings can be used.",
            mounts={SETTINGS: "/etc/cloister/settings.yaml"},
        ),
        Check("refuses missing settings", (*OPERATOR, "--check"), says="cannot be read", code=2),
    ),
    "trainer": (
        _confined(),
        Check("has the steps", ("python", "-m", "cloister_trainer", "--help"), says="prepare"),
        Check("has the command", ("cloister", "--help"), says="verify"),
        Check("imports what it trains with", ("python", "-c", "import deepspeed, peft, ray, torch, transformers")),
        _script("is a healthy Ray head", "ray_head.py", says="success"),
        _script("trains with two ranks, publishes and verifies", "tiny_run.py", says="ZeRO stage 2"),
    ),
    "store": (
        _confined(),
        Check("has weed", ("weed", "version"), says="version"),
        _script("refuses the second conditional write", "conditional_write.py", says="200 412 412"),
    ),
}


def failures(image: Image, engine: Engine) -> list[str]:
    """Run every check of an image, say how each ended, and return the titles of those that failed."""
    return [check.title for check in CHECKS[image.name] if not _passes(check, image, engine)]


def _passes(check: Check, image: Image, engine: Engine) -> bool:
    script = (INSIDE / check.script).read_text() if check.script else ""
    started = time.monotonic()
    done = engine.run(image, check.command, stdin=script, mounts=check.mounts)
    said = done.stdout + done.stderr
    passed = done.returncode == check.code and check.says in said
    print(f"{'ok' if passed else 'FAILED':6}  {image.name} {check.title} ({time.monotonic() - started:.1f} s)")
    if not passed:
        print(f"        exit code {done.returncode}, expected {check.code}; expected to read {check.says!r}")
        print("\n".join(f"        {line}" for line in said.splitlines()[-SHOWN_LINES:]))
    return passed
