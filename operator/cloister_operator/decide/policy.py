"""What a job must keep to before it is accepted: small functions, asked in order; the first refusal stands.

They are asked once. A policy that changes later never fails an accepted job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJobSpec
from cloister_api.places import places_read, places_written
from cloister_api.reasons import FailureReason
from cloister_api.resolve import resolve_spec
from cloister_api.text import printable
from cloister_api.yaml_tree import Path, dotted
from cloister_operator.names import DENY_POLICY, TOPOLOGY_ANNOTATIONS
from cloister_operator.observe.facts import Observation
from cloister_operator.render.run_file import run_settings
from cloister_operator.settings import Allowed

MAX_SPEC_BYTES = 400_000
"""The run file lies in a ConfigMap, which holds a megabyte."""
MAX_MESSAGE = 2500
PLAIN_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})
TEXTS = frozenset({("spec", "dataset", "systemPrompt"), ("spec", "model", "chatTemplate", "inline")})
"""Fields that hold text of several lines."""


@dataclass(frozen=True)
class Refusal:
    """Why a job is not accepted: what was found, what is allowed, what to do."""

    reason: FailureReason
    message: str


def refusal(o: Observation) -> Refusal | None:
    """The first reason not to accept the job."""
    if o.job.spec is None:
        found: Refusal | None = Refusal(FailureReason.SPEC_INVALID, "; ".join(o.job.problems))
    else:
        found = next((found for check in CHECKS if (found := check(o, o.job.spec))), None)
    return found and Refusal(found.reason, found.message[:MAX_MESSAGE])


def printable_text(_: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """No control characters, and no more text than a run file takes."""
    given = spec.to_api()
    if (size := len(json.dumps(given).encode())) > MAX_SPEC_BYTES:
        return _invalid(("spec",), f"has {size:,} bytes; expected at most {MAX_SPEC_BYTES:,}")
    for path, value in _strings(given, ("spec",)):
        if printable(value, keep="\n\t\r" if path in TEXTS else "") != value:
            return _invalid(path, "has control characters; expected text on one line")
    return None


def free_name(o: Observation, _: FineTuneJobSpec) -> Refusal | None:
    """A job's own policy has its name."""
    if o.job.name == DENY_POLICY:
        return _invalid(("metadata", "name"), f"{DENY_POLICY} is the namespace's own policy; choose another name")
    return None


def queueing(o: Observation, _: FineTuneJobSpec) -> Refusal | None:
    """Kueue's annotations hold the name of a node label, or true; the API server itself checks labels."""
    for key in TOPOLOGY_ANNOTATIONS:
        value = o.job.annotations.get(key, "")
        if not re.fullmatch(r"[A-Za-z0-9._/-]{0,317}", value):
            return _invalid(("metadata", "annotations", key), "expected the name of a node label")
    return None


def cluster_uris(_: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """A file of one machine means nothing in a cluster."""
    for path, uri in _uris(spec).items():
        if uri.startswith("file:"):
            return _invalid(
                path, f"found {uri}; file:// is for local runs, expected s3:// or, where it is read, pvc://"
            )
    return None


def places_apart(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """What is written lies outside what is read, run folders included."""
    try:
        resolve_spec(spec, o.job.namespace, run_settings(o.settings))
    except CloisterError as error:
        return Refusal(error.reason, error.message)
    return None


def known_profile(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """The worker profile is one of the administrator's."""
    profile = spec.distribution.profile
    if profile in o.settings.profiles:
        return None
    return _denied(("spec", "distribution", "profile"), profile, o.settings.profiles)


def size(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """No more workers and GPUs than the administrator gives one job."""
    workers, limits = spec.distribution.workers, o.settings.limits
    gpus = workers * spec.distribution.gpus_per_worker
    for what, asked, most in (("workers", workers, limits.workers), ("GPUs", gpus, limits.gpus)):
        if asked > most:
            return Refusal(
                FailureReason.POLICY_DENIED,
                f"spec.distribution: asks for {asked} {what}, and one job may have {most}. Ask for fewer.",
            )
    return None


def egress(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """The egress mode is one that the administrator allows."""
    if spec.network.egress in o.settings.allowed.egress:
        return None
    return _denied(("spec", "network", "egress"), spec.network.egress, o.settings.allowed.egress)


def uris(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """Every URI lies below an allowed prefix, so that no namespace reads another's."""
    prefixes = [prefix.replace("{namespace}", o.job.namespace) for prefix in o.settings.allowed.uri_prefixes]
    for path, uri in _uris(spec).items():
        if not any(_below(uri, prefix) for prefix in prefixes):
            return _denied(path, uri, prefixes)
    return None


def names(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """Secrets, claims and priority classes are ones that the administrator lists."""
    for path, name, listed in _named(spec, o.settings.allowed):
        if "*" not in listed and name not in listed:
            return _denied(path, name, listed)
    return None


def placement(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """Tolerations are listed ones, resources are plain ones, and affinity keeps to the job's namespace."""
    for kind, pod in spec.pods:
        path: Path = ("spec", "pods", kind)
        for toleration in pod.tolerations or []:
            if toleration not in o.settings.allowed.tolerations:
                shown = json.dumps(toleration.to_api(), sort_keys=True)
                allowed = [json.dumps(known.to_api(), sort_keys=True) for known in o.settings.allowed.tolerations]
                return _denied((*path, "tolerations"), shown, allowed)
        resources = pod.resources.to_api() if pod.resources else {}
        for name in {key for quantities in resources.values() for key in quantities} - PLAIN_RESOURCES:
            hint = "; GPUs come from distribution.gpusPerWorker, other devices from a profile"
            return _denied((*path, "resources"), name, sorted(PLAIN_RESOURCES), hint)
        for found, _ in _keys(pod.affinity.to_api() if pod.affinity else {}, (*path, "affinity")):
            if found[-1] in ("namespaces", "namespaceSelector"):
                return _denied(found, "pods of other namespaces", ["pods of the job's own"])
    return None


def stated_license(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """A licence that the job states is an allowed one; what the model's files say is for prepare to find."""
    stated, allowed = spec.model.license, o.settings.allowed.licenses
    if stated is None or not allowed or stated.lower() in {known.lower() for known in allowed}:
        return None
    message = f"spec.model.license: found {stated}; the administrator allows {', '.join(allowed)}"
    return Refusal(FailureReason.LICENSE_NOT_ALLOWED, message)


def own_output(o: Observation, spec: FineTuneJobSpec) -> Refusal | None:
    """No other live job publishes to the same place. Another namespace's job is not named."""
    for rival in o.rivals:
        if rival.first and rival.accepted:
            who = f"job {rival.name}" if rival.namespace == o.job.namespace else "a job of another namespace"
            return Refusal(
                FailureReason.OUTPUT_EXISTS,
                f"spec.output.uri: {who} publishes to {spec.output.uri}, too. Choose another, or wait until it ended.",
            )
    return None


CHECKS = (
    printable_text,
    free_name,
    queueing,
    cluster_uris,
    known_profile,
    size,
    egress,
    uris,
    names,
    placement,
    stated_license,
    places_apart,
    own_output,
)
"""In the order that a person would mend them."""


def _uris(spec: FineTuneJobSpec) -> dict[Path, str]:
    found = places_read(spec) | places_written(spec)
    if spec.resume_from is not None:
        found["spec", "resumeFrom", "uri"] = spec.resume_from.uri
    return found


def _below(uri: str, prefix: str) -> bool:
    return uri == prefix or uri.startswith(prefix if prefix.endswith("/") else prefix + "/")


def _named(spec: FineTuneJobSpec, allowed: Allowed) -> Iterator[tuple[Path, str, list[str]]]:
    yield ("spec", "storage", "secretName"), spec.storage.secret_name, allowed.secret_names
    if spec.output.signing is not None:
        yield ("spec", "output", "signing", "secretName"), spec.output.signing.secret_name, allowed.secret_names
    for path, uri in _uris(spec).items():
        if uri.startswith("pvc://"):
            yield path, claim_of(uri), allowed.claims
    if spec.model.cache is not None and spec.model.cache.claim_name is not None:
        yield ("spec", "model", "cache", "claimName"), spec.model.cache.claim_name, allowed.claims
    for kind, pod in spec.pods:
        if pod.priority_class_name is not None:
            yield ("spec", "pods", kind, "priorityClassName"), pod.priority_class_name, allowed.priority_classes


def claim_of(uri: str) -> str:
    """The claim's name in pvc://claim/path."""
    return uri.removeprefix("pvc://").partition("/")[0]


def _strings(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every text in a JSON value, keys of mappings included."""
    for where, found in _keys(value, path):
        yield where, str(where[-1])
        if isinstance(found, str):
            yield where, found


def _keys(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every value below `value` with its path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inner:
        yield (*path, key), found
        yield from _keys(found, (*path, key))


def _invalid(path: Path, sentence: str) -> Refusal:
    return Refusal(FailureReason.SPEC_INVALID, f"{printable(dotted(path))}: {sentence}")


def _denied(path: Path, found: str, allowed: Any, hint: str = "") -> Refusal:
    listed = ", ".join(sorted(map(str, allowed))) or "none"
    return Refusal(
        FailureReason.POLICY_DENIED,
        f"{dotted(path)}: found {printable(found)[:200]}; the administrator allows {listed[:800]}{hint}",
    )
