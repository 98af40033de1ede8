"""The list of what is in an image: CycloneDX 1.5 in JSON, from what the image itself knows to be installed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from images.engine import BuildError, Engine
from images.image import Image, version

INVENTORY = Path(__file__).parent / "inside" / "inventory.py"
LONGEST_LICENCE = 100
"""Some packages have their licence's whole text where its name is expected."""

Packages = Sequence[Mapping[str, str]]


def write_sbom(image: Image, engine: Engine, identity: str) -> None:
    """Ask the image, and write its list. Raises BuildError."""
    listed = engine.run(image, ["python", "-"], stdin=INVENTORY.read_text())
    if listed.returncode != 0:
        raise BuildError(f"{image.tag} cannot list its packages: {listed.stderr.strip()}")
    packages = json.loads(listed.stdout)
    document = sbom(image, identity, packages["python"], packages["debian"])
    image.sbom.write_text(json.dumps(document, indent=1) + "\n")


def sbom(image: Image, identity: str, python: Packages, debian: Packages) -> dict[str, Any]:
    """The document. The same image gives the same document."""
    components = [*map(_python_component, python), *map(_debian_component, debian)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": image.tag,
                "name": image.tag.rpartition(":")[0],
                "version": version(),
                "properties": [{"name": "cloister:image-id", "value": identity}],
            }
        },
        "components": sorted(components, key=lambda component: str(component["bom-ref"])),
    }


def _python_component(package: Mapping[str, str]) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", package["name"]).lower()
    component = _component(f"pkg:pypi/{name}@{quote(package['version'])}", package["name"], package["version"])
    licence = package["licence"].strip()
    if licence and len(licence) <= LONGEST_LICENCE:
        component["licenses"] = [{"license": {"name": licence}}]
    return component


def _debian_component(package: Mapping[str, str]) -> dict[str, Any]:
    where = f"{quote(package['name'])}@{quote(package['version'])}?arch={package['architecture']}"
    return _component(f"pkg:deb/debian/{where}", package["name"], package["version"])


def _component(purl: str, name: str, found_version: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": found_version, "purl": purl}
