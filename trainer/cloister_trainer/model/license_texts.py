"""Licences by what their texts say, and the many ways to write their names."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class LicenseText:
    """A licence and the phrases that its text, in lower case with single spaces, must all contain."""

    id: str
    phrases: tuple[str, ...]


MIT_GRANT = "permission is hereby granted, free of charge, to any person obtaining a copy"

LICENSE_TEXTS: tuple[LicenseText, ...] = (
    LicenseText("llama4", ("llama 4 community license agreement",)),
    LicenseText("llama3.3", ("llama 3.3 community license agreement",)),
    LicenseText("llama3.2", ("llama 3.2 community license agreement",)),
    LicenseText("llama3.1", ("llama 3.1 community license agreement",)),
    LicenseText("llama3", ("llama 3 community license agreement",)),
    LicenseText("llama2", ("llama 2 community license agreement",)),
    LicenseText("gemma", ("gemma terms of use",)),
    LicenseText("qwen-research", ("qwen research license agreement",)),
    LicenseText("tongyi-qianwen", ("tongyi qianwen license agreement",)),
    LicenseText("qwen", ("qwen license agreement",)),
    LicenseText("deepseek", ("deepseek license agreement",)),
    LicenseText("minimax", ("minimax model license",)),
    LicenseText("mnpl", ("mistral ai non-production license",)),
    LicenseText("mrl", ("mistral ai research license",)),
    LicenseText("bigscience-openrail-m", ("bigscience openrail-m",)),
    LicenseText("bigcode-openrail-m", ("bigcode openrail-m",)),
    LicenseText("creativeml-openrail-m", ("creativeml open rail-m",)),
    LicenseText("openrail", ("open responsible ai license",)),
    LicenseText("nvidia-open-model", ("nvidia open model license agreement",)),
    LicenseText("falcon-llm", ("falcon llm license",)),
    LicenseText("ms-research", ("microsoft research license terms",)),
    LicenseText("modified-mit", (MIT_GRANT, "modified mit license")),
    LicenseText("modified-mit", (MIT_GRANT, "our only modification")),
    LicenseText("mit", (MIT_GRANT, "without warranty of any kind")),
    LicenseText("apache-2.0", ("apache license", "version 2.0, january 2004")),
    LicenseText("apache-2.0", ('licensed under the apache license, version 2.0 (the "license")',)),
    LicenseText("bsd-3-clause", ("redistribution and use in source and binary forms", "neither the name of")),
    LicenseText("bsd-2-clause", ("redistribution and use in source and binary forms",)),
    LicenseText("cc-by-nc-sa-4.0", ("attribution-noncommercial-sharealike 4.0 international",)),
    LicenseText("cc-by-nc-4.0", ("attribution-noncommercial 4.0 international",)),
    LicenseText("cc-by-sa-4.0", ("attribution-sharealike 4.0 international",)),
    LicenseText("cc-by-4.0", ("attribution 4.0 international",)),
    LicenseText("cc0-1.0", ("cc0 1.0 universal",)),
)
"""In this order: a licence that quotes another comes before it."""

TITLE_CHARACTERS = 4096
"""Licences by the name of a company are recognised in the beginning of a file only: others quote them further down."""

ALIASES: dict[str, str] = {
    "apache2": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache2.0": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "apache 2.0": "apache-2.0",
    "llama-2": "llama2",
    "llama-3": "llama3",
    "llama-3.1": "llama3.1",
    "llama-3.2": "llama3.2",
    "llama-3.3": "llama3.3",
    "llama-4": "llama4",
    "deepseek-license": "deepseek",
    "deepseek license agreement": "deepseek",
    "qwen-license": "qwen",
    "qwen license agreement": "qwen",
    "tongyi-qianwen-license-agreement": "tongyi-qianwen",
    "tongyi-qianwen-research": "qwen-research",
    "gemma-terms-of-use": "gemma",
    "minimax-model-license": "minimax",
    "mistral-ai-research-license": "mrl",
    "mistral-ai-non-production-license": "mnpl",
    "openrail-m": "openrail",
}
_SUFFIX = re.compile(r"[-_ ]?(community)?[-_ ]?licen[cs]e$")


def normal_id(text: str) -> str:
    """A licence's identifier in lower case, under the name that LICENSE_TEXTS gives it."""
    plain = " ".join(text.strip().lower().split())
    if plain in ALIASES:
        return ALIASES[plain]
    hyphened = plain.replace(" ", "-").replace("_", "-")
    bare = _SUFFIX.sub("", hyphened)
    return ALIASES.get(hyphened) or ALIASES.get(bare) or (bare if bare in _IDS else hyphened)


def recognise(text: str) -> str | None:
    """The licence that a file's text is, or None when it is none of LICENSE_TEXTS."""
    plain = " ".join(text.lower().replace("“", '"').replace("”", '"').split())
    for license_text in LICENSE_TEXTS:
        if (
            all(phrase in plain for phrase in license_text.phrases)
            and license_text.phrases[0] in (plain[:TITLE_CHARACTERS])
        ):
            return license_text.id
    return None


_IDS = {license_text.id for license_text in LICENSE_TEXTS}
