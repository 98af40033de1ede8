"""`python -m images build|test [NAME…]`: what `make images` and `make images-test` run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from images.buildah import Buildah
from images.checks import failures
from images.engine import BASE_IMAGE_ENVIRONMENT, BuildError, Docker, Engine, answering
from images.image import BUILT, NAMES, ROOT, Image, version
from images.sbom import write_sbom

SOURCE_ENVIRONMENT = "SOURCE"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
MEGABYTE = 10**6


def main() -> int:
    """Build or test the named images, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m images", description=__doc__)
    parser.add_argument("what", choices=("build", "test"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"images to take: {', '.join(NAMES)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no image {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    images = [Image(name) for name in options.names or NAMES]
    try:
        engine = choose_engine()
        if options.what == "build":
            for image in images:
                build(image, engine, os.environ)
            return 0
        failed = [title for image in images for title in failures(image, engine)]
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return bool(failed)


def choose_engine() -> Engine:
    """docker or podman when it answers, else buildah. Raises BuildError."""
    program = answering()
    return Docker(program) if program else Buildah()


def build(image: Image, engine: Engine, environ: Mapping[str, str]) -> None:
    """Image, archive and SBOM; nothing happens when all three are there and were made from the same inputs."""
    arguments = build_arguments(image, environ)
    fingerprint = image.fingerprint(engine.name, json.dumps(arguments, sort_keys=True))
    stamp = read_stamp(image)
    is_there = image.archive.exists() and image.sbom.exists() and engine.identity(image) == stamp.get("image")
    if is_there and stamp.get("fingerprint") == fingerprint:
        report(image, stamp["image"], "up to date")
        return
    started = time.monotonic()
    BUILT.mkdir(parents=True, exist_ok=True)
    image.stamp.unlink(missing_ok=True)
    with secrets(environ) as given:
        engine.build(image, arguments, given)
    built = time.monotonic() - started
    identity = engine.identity(image)
    if identity is None:
        raise BuildError(f"{engine.name} built {image.tag}, and it is not there.")
    write_archive(image, engine)
    write_sbom(image, engine, identity)
    image.stamp.write_text(json.dumps({"fingerprint": fingerprint, "image": identity}))
    report(image, identity, f"built in {built:.0f} s, with archive and SBOM {time.monotonic() - started:.0f} s")


def build_arguments(image: Image, environ: Mapping[str, str]) -> dict[str, str]:
    """The Dockerfile's arguments. BASE_IMAGE and SOURCE are taken from the environment where it has them."""
    optional = {name: environ[name] for name in (BASE_IMAGE_ENVIRONMENT, SOURCE_ENVIRONMENT) if environ.get(name)}
    return {"VERSION": version(), "REVISION": image.revision(), **optional}


@contextmanager
def secrets(environ: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Files that the build may read and that no layer keeps: certificates of this machine, addresses of a mirror."""
    found = {}
    certificates = Path(environ.get("SSL_CERT_FILE") or CERTIFICATES)
    if certificates.is_file():
        found["ca"] = certificates
    with tempfile.TemporaryDirectory() as folder:
        if index := environ.get("PIP_INDEX_URL"):
            found["pip"] = Path(folder) / "pip.conf"
            found["pip"].write_text(f"[global]\nindex-url = {index}\n")
        if index := environ.get("UV_DEFAULT_INDEX"):
            found["uv"] = Path(folder) / "uv.toml"
            found["uv"].write_text(f"[[index]]\nurl = {json.dumps(index)}\ndefault = true\n")
        yield found


def write_archive(image: Image, engine: Engine) -> None:
    """The archive, whole or not there."""
    partial = image.archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    image.archive.unlink(missing_ok=True)
    engine.save(image, partial)
    partial.rename(image.archive)


def read_stamp(image: Image) -> dict[str, str]:
    """What the last build left; empty when there was none."""
    if not image.stamp.exists():
        return {}
    stamp: dict[str, str] = json.loads(image.stamp.read_text())
    return stamp


def report(image: Image, identity: str, how: str) -> None:
    """One line on an image that is there."""
    size = image.archive.stat().st_size / MEGABYTE
    print(f"{image.tag}  {identity[:19]}  {size:,.0f} MB  {image.archive.relative_to(ROOT)}  {how}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
