"""From facts to a table: a question a line, and what to do for each no."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloister_api.base import ApiEnum
from cloister_operator.readiness.facts import Expectations, Facts, KubeRayFound, Obstacle

OLDEST_KUBERAY = (1, 6)
RAY_JOB = "ray.io/rayjob"
WIDTH = 120
_TAG_VERSION = re.compile(r":v?(\d+)\.(\d+)[^/@]*(@|$)")
_CHART_VERSION = re.compile(r"-v?(\d+)\.(\d+)\.\d")


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


def _kuberay(facts: Facts, expected: Expectations) -> Row:
    question = f"KubeRay {OLDEST_KUBERAY[0]}.{OLDEST_KUBERAY[1]} or newer runs"
    install = "Install KubeRay 1.6 or newer, cluster-wide or for the jobs' namespaces (docs/install.md)."
    if not facts.ray_jobs_served:
        return Row(question, Answer.NO, "there is no ray.io/v1 RayJob", install)
    if not facts.kuberay:
        labels = ",".join(f"{key}={value}" for key, value in expected.kuberay_labels.items())
        found = f"its CRDs are there; no Deployment's pods are labelled {labels}"
        fix = f"{install} Network policies know it by this label, or by what settings.network.kuberay says."
        return Row(question, Answer.NO, found, fix)
    running = [each for each in facts.kuberay if each.available]
    if not running:
        found = f"{', '.join(each.image for each in facts.kuberay)}: no pod is Available"
        return Row(question, Answer.NO, found, "kubectl describe its Deployment and pods: they say what is missing.")
    unknown = []
    for each in running:
        version = _version(each)
        if version is None:
            unknown.append(each.image)
        elif version < OLDEST_KUBERAY:
            return Row(question, Answer.NO, f"{each.image} {each.chart}".strip(), install)
    if unknown:
        fix = "Look up in your registry that it is 1.6 or newer; a tag, or the label helm.sh/chart, says it here."
        found = f"{', '.join(unknown)}: its name says no version"
        return Row(question, Answer.UNKNOWN, found, fix, required=False)
    return Row(question, Answer.YES, ", ".join(f"{each.image} {each.chart}".strip() for each in running))


def _version(kuberay: KubeRayFound) -> tuple[int, int] | None:
    """By the image's tag; where it has none that is a version, by the chart's."""
    match = _TAG_VERSION.search(kuberay.image) or _CHART_VERSION.search(kuberay.chart)
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
    question = "DNS resolves names"
    if not facts.unresolved:
        return Row(question, Answer.YES, "the operator's Services and the object store")
    fix = (
        "Check CoreDNS and what stands between it and this namespace; where pods ask another DNS than kube-dns in "
        "kube-system, name it in settings.network.dns."
    )
    return Row(question, Answer.NO, f"not {', '.join(facts.unresolved)}", fix)


def _images(facts: Facts, expected: Expectations) -> Row:
    question = "Images are pulled, pods let in"
    reason = facts.inputs.reason
    if facts.inputs.ended or reason == Obstacle.NOT_ENDED:
        return Row(question, Answer.YES, "the trainer's image ran")
    place = f"-n {expected.namespace}"
    more = f"kubectl describe job {expected.inputs_name} {place} says more."
    fixes = {
        **_not_made_fixes("job", expected.inputs_name, expected),
        Obstacle.QUEUED: f"Look at the LocalQueue of settings.auxiliaryQueueName: kubectl describe localqueue {place}.",
        Obstacle.NO_POD: f"Let the quotas and admission policies of namespace {expected.namespace} admit it; {more}",
        Obstacle.NOT_STARTED: f"Where a large image is pulled slowly, raise readiness.timeoutMinutes; {more}",
        "Unschedulable": f"Free 100m of CPU and 1Gi of memory on a node that takes pods without tolerations; {more}",
        "CreateContainerConfigError": f"Make the Secret of readiness.secretName in namespace {expected.namespace}.",
    }
    images = f"Check images.* and the Secrets of images.pullSecrets in namespace {expected.namespace}; {more}"
    return Row(question, Answer.NO, _told(reason, facts.inputs.message), fixes.get(reason, images))


def _not_made_fixes(kind: str, name: str, expected: Expectations) -> dict[str, str]:
    """What to do when the test's own object is not made."""
    return {
        Obstacle.STILL_THERE: (
            f"See what holds it, its finalizers or pods on a node that does not answer: kubectl get {kind} {name} -n "
            f"{expected.namespace} -o yaml; then run the test again."
        ),
        Obstacle.REFUSED: (
            f"Change the quota, the admission policy or the value (readiness.job) that it names, in namespace "
            f"{expected.namespace}."
        ),
        Obstacle.NOT_SERVED: "Apply the CRD of FineTuneJobs: with crd.install=false somebody else has to.",
    }


def _told(reason: str, message: str) -> str:
    """A reason and a sentence, or what there is of them."""
    return ": ".join(word for word in (reason, message) if word)


def _store(facts: Facts, expected: Expectations) -> Row:
    question = "The object store takes conditional writes"
    reason = facts.inputs.reason
    if not facts.inputs.ended and reason != Obstacle.NOT_ENDED:
        return Row(question, Answer.UNKNOWN, "not asked: the trainer's image did not run")
    if not reason:
        return Row(question, Answer.YES, "If-None-Match and If-Match are kept")
    if reason == "StorageUnsupported":
        fix = "Use a store with conditional writes (PUT with If-None-Match and If-Match), or a newer version of it."
    elif reason == "Internal":
        fix = f"kubectl logs -n {expected.namespace} job/{expected.inputs_name} shows what the trainer's image said."
    else:
        fix = "Check settings.storage, the credentials' Secret (readiness.secretName) and readiness.uri."
    return Row(question, Answer.NO, _told(reason, facts.inputs.message), fix)


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
    if not job.phase and not job.reason:
        return Row(question, Answer.UNKNOWN, "not tried: its model and rows are not in the store")
    if not job.phase:
        fix = _not_made_fixes("ftj", expected.job_name, expected)[job.reason]
        return Row(question, Answer.NO, _told(job.reason, job.message), fix)
    fix = (
        f"docs/reasons.md says what to do about each reason; kubectl describe ftj {expected.job_name} -n "
        f"{expected.namespace} says more."
    )
    if job.phase == "Failed":
        return Row(question, Answer.NO, f"Failed, {_told(job.reason, job.message)}", fix)
    found = f"not in time: {', '.join(word for word in (job.phase, _told(job.reason, job.message)) if word)}"
    return Row(question, Answer.NO, found, f"{fix} Where it only needs longer, raise readiness.timeoutMinutes.")


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
