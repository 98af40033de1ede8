"""Reading the administrator's settings at start, with every problem as a sentence."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister_api.base import MODEL_URI_PATTERN
from cloister_api.problems import Problem, checked
from cloister_api.text import printable
from cloister_api.units import parse_duration
from cloister_api.yaml_tree import UnreadableError, read_documents
from cloister_operator.settings import NetworkSettings, Peer, Settings

SETTINGS_ENVIRONMENT = "CLOISTER_SETTINGS"
NAMESPACE_ENVIRONMENT = "CLOISTER_NAMESPACE"
DEFAULT_PATH = "/etc/cloister/settings.yaml"

_ADDRESS = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_CONFIGURATION_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SettingsError(Exception):
    """Settings that cannot be used; the message has one line for each problem."""


@dataclass(frozen=True)
class Configuration:
    """What the operator is started with."""

    settings: Settings
    namespace: str | None
    """The only namespace that is watched. None: all of them."""


def load_configuration(environ: Mapping[str, str]) -> Configuration:
    """The settings file that CLOISTER_SETTINGS names, and the namespace in CLOISTER_NAMESPACE.

    Raises SettingsError.
    """
    path = Path(environ.get(SETTINGS_ENVIRONMENT) or DEFAULT_PATH)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(
            f"{path}: cannot be read: {what}. Mount the settings there, or name their file in {SETTINGS_ENVIRONMENT}."
        ) from None
    return Configuration(parse_settings(text, str(path)), environ.get(NAMESPACE_ENVIRONMENT) or None)


def parse_settings(text: str, source: str) -> Settings:
    """The settings in a YAML text; `source` is its name in messages. Raises SettingsError."""
    try:
        documents = read_documents(text)
    except UnreadableError as error:
        raise SettingsError(f"{source}:{error.line or 1}: {error.sentence}") from None
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise SettingsError(f"{source}: expected one mapping with the settings, images.trainer at least")
    document = documents[0]
    found = checked(Settings, document.value)
    problems = found if isinstance(found, list) else list(_further_problems(found))
    if not isinstance(found, list) and not problems:
        return found
    raise SettingsError(
        "\n".join(printable(f"{source}:{document.line(problem.path)}: {problem}") for problem in problems)
    )


def _further_problems(settings: Settings) -> Iterator[Problem]:
    """What a schema cannot say."""
    if not _IMAGE.fullmatch(settings.images.trainer):
        yield Problem(("images", "trainer"), "expected an image such as registry.internal/cloister/trainer@sha256:…")
    for number, prefix in enumerate(settings.allowed.uri_prefixes):
        if not re.match(r"(s3|pvc)://", prefix):
            yield Problem(("allowed", "uriPrefixes", number), "expected a prefix such as s3://datasets/{namespace}")
    run_uri = (settings.storage.run_uri or "").replace("{namespace}", "namespace")
    if run_uri and not re.match(MODEL_URI_PATTERN, run_uri):
        yield Problem(("storage", "runUri"), "expected a place such as s3://cloister-runs/{namespace}")
    if settings.storage.ca is not None and "-----BEGIN CERTIFICATE-----" not in settings.storage.ca:
        yield Problem(("storage", "ca"), "expected certificates in PEM form, not the name of a file")
    if "PRIVATE KEY" in (settings.storage.ca or ""):
        yield Problem(("storage", "ca"), "found a private key; expected certificates alone")
    for name, profile in settings.profiles.items():
        for key in profile.env:
            if not _CONFIGURATION_KEY.fullmatch(key):
                yield Problem(("profiles", name, "env"), "expected names of environment variables")
    for name, value in settings.patience.to_api().items():
        if not 60 <= parse_duration(value) <= 30 * 86400:
            yield Problem(("patience", name), f"expected 1m to 720h, found {value}")
    yield from _network_problems(settings.network)
    for path, peer in _peers(settings):
        yield from _peer_problems(path, peer)


def _network_problems(network: NetworkSettings) -> Iterator[Problem]:
    for field, address in (("controlAddress", network.control_address), ("canaryAddress", network.canary_address)):
        if address is None and network.require_enforced_egress:
            yield Problem(
                ("network", field),
                "missing; expected host:port of the operator's listener, or network.requireEnforcedEgress: false",
            )
        if address is not None and not _ADDRESS.fullmatch(address):
            yield Problem(("network", field), "expected host:port")


def _peer_problems(path: tuple[Any, ...], peer: Peer) -> Iterator[Problem]:
    labelled = peer.namespace_labels is not None or peer.pod_labels is not None
    if (peer.cidr is None) != labelled:
        yield Problem(path, "expected either cidr, or namespaceLabels and podLabels")
    if peer.cidr is not None:
        try:
            ipaddress.ip_network(peer.cidr)
        except ValueError:
            yield Problem((*path, "cidr"), "expected a block of addresses such as 10.20.0.0/16")


def _peers(settings: Settings) -> Iterator[tuple[tuple[Any, ...], Peer]]:
    network = settings.network
    for number, peer in enumerate(settings.storage.peers):
        yield ("storage", "peers", number), peer
    for number, peer in enumerate(network.dns):
        yield ("network", "dns", number), peer
    yield ("network", "operator"), network.operator
    yield ("network", "kuberay"), network.kuberay
    if network.prometheus is not None:
        yield ("network", "prometheus"), network.prometheus
