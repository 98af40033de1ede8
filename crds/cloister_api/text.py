"""Text from elsewhere made safe to show: nothing in it moves a terminal's cursor, and no password is repeated."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, changes of writing direction, and halves of surrogate pairs."""


def printable(text: str, keep: str = "") -> str:
    """`text` with a question mark for every control character but those in `keep`."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else "?", text)


def masked(uri: str) -> str:
    """`uri` without the user and password that may stand before an @; also of texts that are not quite a URI."""
    before, _, after = uri.rpartition("@")
    scheme, separator, rest = before.partition("://")
    if separator and "@" not in scheme:
        in_authority = "/" not in rest or ":" in rest.partition("/")[0]
        return f"{scheme}://***@{after}" if in_authority else uri
    return f"***@{after}" if before else uri
