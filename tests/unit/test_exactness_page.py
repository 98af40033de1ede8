"""docs/exactness.md names tests that exist."""

from __future__ import annotations

import ast
import re

from support.pages import ROOT

NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_claim_names_a_test() -> None:
    rows = [row for row in (ROOT / "docs" / "exactness.md").read_text().splitlines() if row.startswith("|")]
    claims = [row for row in rows if not row.startswith(("| Claim", "| ---"))]
    assert len(claims) > 10
    for claim in claims:
        named = NAMED.findall(claim)
        assert named or claim.endswith("the same |"), claim
        for file, name in named:
            module = ast.parse((ROOT / "tests" / "trainer" / file).read_text())
            assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
