"""From facts to a table: a question a line, and what to do for each no."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloister_api.base import ApiEnum
from cloister_operator.readiness.facts import Expectations, Facts

OLDEST_KUBERAY = (1, 6)
RAY_JOB = "ray.io/rayjob"
WIDTH = 120
_TAG_VERSION = re.compile(r":v?(\d+)\.(\d+)[^/@]*(@|$)")


class Answer(ApiEnum):
    """What a line says."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "-"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    question: str
    answer: Answer
    found: str
    fix: str = ""
    required: bool = True
    """A no fails the test."""


def rows(facts: Facts, expected: Expectations) -> list[Row]:
    """All lines, in the order in which their fixes make sense."""
    return [question(facts, expected) for question in QUESTIONS]


def is_ready(table: Sequence[Row]) -> bool:
    """Whether nothing that is required is missing or unknown."""
    return all(row.answer is Answer.YES for row in table if row.required)


def render(table: Sequence[Row]) -> str:
    """The table as text; a line with a no is followed by its fix."""
    width = max(len(row.question) for row in table)
    lines = []
    for row in table:
        lines.append(f"{row.question:{width}}  {row.answer:3}  {row.found}")
        if row.answer is not Answer.YES and row.fix:
            indent = " " * (width + 7)
            lines += textwrap.wrap(f"fix: {row.fix}", WIDTH, initial_indent=indent, subsequent_indent=indent + "     ")
    return "\n".join(lines) + "\n"


def _kuberay(facts: Facts, _: Expectations) -> Row:
    question = f"KubeRay {OLDEST_KUBERAY[0]}.{OLDEST_KUBERAY[1]} or newer runs"
    install = "Install KubeRay 1.6 or newer, cluster-wide or for the jobs' namespaces (docs/install.md)."
    if not facts.ray_jobs_served:
        return Row(question, Answer.NO, "there is no ray.io/v1 RayJob", install)
    if not facts.kuberay_images:
        found = "its CRDs are there; no Deployment is labelled app.kubernetes.io/name=kuberay-operator"
        return Row(question, Answer.NO, found, f"{install} The label is what network policies know it by.")
    versions = {image: _version(image) for image in facts.kuberay_images}
    for image, version in versions.items():
        if version is not None and version < OLDEST_KUBERAY:
            return Row(question, Answer.NO, image, install)
    unknown = " (its name says no version)" if None in versions.values() else ""
    return Row(question, Answer.YES, ", ".join(facts.kuberay_images) + unknown)


def _version(image: str) -> tuple[int, int] | None:
    match = _TAG_VERSION.search(image)
    return (int(match[1]), int(match[2])) if match else None


def _kueue(facts: Facts, expected: Expectations) -> Row:
    question = "Kueue queues RayJobs"
    required = expected.kueue_required
    if not facts.kueue_served:
        fix = (
            "Jobs on several nodes need Kueue, or a gang scheduler in settings.profiles.*.schedulerName, when they "
            "share nodes with others: else two can each hold half of the GPUs and wait for ever."
        )
        return Row(question, Answer.NO, "Kueue is not installed", fix, required)
    if facts.kueue_frameworks is None:
        fix = "Set readiness.kueueNamespace to where its ConfigMap kueue-manager-config lies."
        return Row(question, Answer.UNKNOWN, "Kueue is installed; its configuration was not found", fix, required=False)
    if RAY_JOB not in facts.kueue_frameworks:
        fix = f"Add {RAY_JOB} to integrations.frameworks in Kueue's kueue-manager-config and start Kueue again."
        return Row(question, Answer.NO, f"it does not queue {RAY_JOB}", fix)
    return Row(question, Answer.YES, ", ".join(sorted(facts.kueue_frameworks)))


def _gpus(facts: Facts, expected: Expectations) -> Row:
    question = "Nodes offer GPUs"
    resources = expected.gpu_resources
    found = ", ".join(f"{facts.gpus.get(each, 0)} {each}" for each in resources)
    if all(facts.gpus.get(each) for each in resources):
        return Row(question, Answer.YES, found, required=not expected.gpu_optional)
    fix = (
        "Install the GPU's device plugin, or its vendor's GPU operator, and check its DaemonSet; the name of the "
        "resource is settings.profiles.*.gpuResource. For a cluster without GPUs set readiness.gpuOptional."
    )
    return Row(question, Answer.NO, found, fix, required=not expected.gpu_optional)


def _dns(facts: Facts, _: Expectations) -> Row:
    question = "Names are resolved"
    if not facts.unresolved:
        return Row(question, Answer.YES, "the operator's Services and the object store")
    fix = (
        "Check CoreDNS and what stands between it and this namespace; where pods ask another DNS than kube-dns in "
        "kube-system, name it in settings.network.dns."
    )
    return Row(question, Answer.NO, f"not {', '.join(facts.unresolved)}", fix)


def _images(facts: Facts, expected: Expectations) -> Row:
    question = "Images are pulled, pods let in"
    if facts.inputs.ended:
        return Row(question, Answer.YES, "the trainer's image ran")
    fix = (
        f"Check images.* and the Secrets of images.pullSecrets in namespace {expected.namespace}; kubectl describe job "
        f"{expected.inputs_name} -n {expected.namespace} says more."
    )
    return Row(question, Answer.NO, f"{facts.inputs.reason}: {facts.inputs.message}".strip(": "), fix)


def _store(facts: Facts, _: Expectations) -> Row:
    question = "The object store keeps conditions of writes"
    reason = facts.inputs.reason
    if not facts.inputs.ended:
        return Row(question, Answer.UNKNOWN, "not asked: the trainer's image did not run")
    if not reason:
        return Row(question, Answer.YES, "If-None-Match and If-Match are kept")
    if reason == "StorageUnsupported":
        fix = "Use a store with conditional writes (docs/install.md has a list), or a newer version of it."
    else:
        fix = "Check settings.storage, the credentials' Secret (readiness.secretName) and readiness.uri."
    return Row(question, Answer.NO, f"{reason}: {facts.inputs.message}", fix)


def _network(facts: Facts, _: Expectations) -> Row:
    question = "NetworkPolicies are enforced"
    match facts.job.egress:
        case "Enforced":
            return Row(question, Answer.YES, "jobs reach the operator's control port, and not its canary")
        case "NotEnforced":
            fix = "Use a network plugin that enforces NetworkPolicies, for example Calico or Cilium."
            return Row(question, Answer.NO, "a job's pod reached the canary, which no policy allows", fix)
        case "Unproven":
            fix = (
                "Check that the operator's pod is Ready, that settings.network.dns names this cluster's DNS, and that "
                "no policy of the operator's namespace keeps jobs' pods from port 8444."
            )
            return Row(question, Answer.NO, "a job's pod did not reach the operator's control port", fix)
        case "Open":
            return Row(question, Answer.UNKNOWN, "readiness.job asks for open egress", "Leave spec.network out of it.")
        case _:
            return Row(question, Answer.UNKNOWN, "the job did not come so far")


def _job(facts: Facts, expected: Expectations) -> Row:
    question = "A job of 20 steps went through all phases"
    job = facts.job
    if job.phase == "Complete":
        return Row(question, Answer.YES, "prepared, trained, published")
    if not job.phase:
        return Row(question, Answer.UNKNOWN, "not tried: its model and rows are not in the store")
    fix = (
        f"docs/reasons.md says what to do about each reason; kubectl describe ftj {expected.job_name} -n "
        f"{expected.namespace} says more."
    )
    return Row(question, Answer.NO, f"{job.phase}, {job.reason}: {job.message}", fix)


QUESTIONS: tuple[Callable[[Facts, Expectations], Row], ...] = (
    _kuberay,
    _kueue,
    _gpus,
    _dns,
    _images,
    _store,
    _network,
    _job,
)
