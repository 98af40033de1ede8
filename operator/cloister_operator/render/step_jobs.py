"""The Jobs of prepare and publish."""

from __future__ import annotations

from cloister_api.exit_codes import ExitCode
from cloister_api.job import FineTuneJobSpec
from cloister_operator.names import ATTEMPT_LABEL, QUEUE_LABEL, Role, Step, step_name
from cloister_operator.observe.facts import Job
from cloister_operator.render.metadata import Rendered, metadata
from cloister_operator.render.pod import container, environment, pod_template, resources, step_command
from cloister_operator.render.storage_access import SIGNING_KEY, claim_mounts, common_mounts, signing_mounts
from cloister_operator.settings import Settings

PUBLISH_SECONDS = 3600
POD_RETRIES = 3


def step_job_object(job: Job, spec: FineTuneJobSpec, settings: Settings, step: Step, ordinal: int) -> Rendered:
    """The Job of a step; `ordinal` says how many runs of the step failed before."""
    queue = settings.auxiliary_queue_name
    labels = {ATTEMPT_LABEL: str(ordinal)} | ({QUEUE_LABEL: queue} if queue else {})
    rules = [
        {
            "action": "FailJob",
            "onExitCodes": {"operator": "In", "values": [int(ExitCode.REFUSED), int(ExitCode.FAILED)]},
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, settings, step_name(job.name, step), labels),
        "spec": {
            "backoffLimit": POD_RETRIES,
            "podFailurePolicy": {"rules": rules},
            **({"activeDeadlineSeconds": PUBLISH_SECONDS} if step is Step.PUBLISH else {}),
            "template": _template(job, spec, settings, step),
        },
    }


def _template(job: Job, spec: FineTuneJobSpec, settings: Settings, step: Step) -> Rendered:
    prepares = step is Step.PREPARE
    chosen = spec.pods.prepare if prepares else spec.pods.publish
    default = settings.resources.prepare if prepares else settings.resources.publish
    key = signing_mounts(spec)
    mounts = [*common_mounts(job, spec), *claim_mounts(spec, all_inputs=prepares)]
    env = environment(spec, {})
    signing_env = environment(spec, {"CLOISTER_SIGNING_KEY": SIGNING_KEY} if key else {})
    limits = resources(chosen, default)
    main = {
        **container(step.value, settings, env if prepares else signing_env, mounts if prepares else [*mounts, *key]),
        "command": step_command(step.value),
        "resources": limits,
    }
    check = {
        **container("check", settings, signing_env, [*mounts, *key]),
        "command": step_command(Step.PUBLISH.value, "--check"),
        "resources": limits,
    }
    pod: Rendered = {"restartPolicy": "Never"}
    if prepares:
        pod["initContainers"] = [check]
    pod["containers"] = [main]
    return pod_template(job, settings, Role(step), chosen, pod, [*mounts, *key])
