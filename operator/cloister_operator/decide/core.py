"""From an observation to a decision. Level-triggered: whatever happened before, what is seen now decides."""

from __future__ import annotations

from datetime import datetime, timedelta

from cloister_api.job import FineTuneJobSpec
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.spec_cluster import Egress
from cloister_api.status import ConditionType, Phase
from cloister_operator.decide.actions import Create, Decision, Delete, Mend
from cloister_operator.decide.draft import FINAL, Draft
from cloister_operator.decide.evidence import Failure
from cloister_operator.decide.messages import timestamp
from cloister_operator.decide.policy import refusal
from cloister_operator.decide.progress import note_end
from cloister_operator.decide.results import EgressProof, read_prepared, read_published
from cloister_operator.decide.steps import resume, run_step
from cloister_operator.decide.training import is_trained, kept_back, train
from cloister_operator.names import DENY_POLICY, Step, run_file_name
from cloister_operator.observe.facts import Observation
from cloister_operator.render.policies import allow_policy, deny_policy
from cloister_operator.render.run_file import resolved_spec, run_config_map, run_settings


def decide(o: Observation) -> Decision:
    """What to do about a job now. Nothing is ever made for a job that is being deleted."""
    if o.job.deleting:
        return Decision(o.status)
    if o.job.spec is None:
        return _unreadable(o)
    draft = Draft(o, o.job.spec)
    for rule in (finish, accept, lay_foundation, prepare, train_or_wait, publish):
        if not rule(draft, o.job.spec):
            break
    return draft.decision()


def finish(d: Draft, spec: FineTuneJobSpec) -> bool:
    """A job that ended stays as it ended; what still runs is ended, and the job itself goes when its time is over."""
    if d.status.phase not in FINAL:
        return True
    d.delete_running()
    if spec.ttl_seconds_after_finished is not None and d.status.completion_time is not None:
        end = datetime.fromisoformat(d.status.completion_time) + timedelta(seconds=spec.ttl_seconds_after_finished)
        if d.o.now >= end:
            d.actions.append(Delete("FineTuneJob", d.o.job.name, d.o.job.uid))
        else:
            d.look_again(end)
    return False


def accept(d: Draft, spec: FineTuneJobSpec) -> bool:
    """Check once whether the job may run."""
    if d.status.start_time is not None:
        if d.holds(ConditionType.STALLED):
            d.condition(ConditionType.STALLED, False, ConditionReason.RESUMED)
        return True
    refused = refusal(d.o)
    if refused is None and any(rival.first for rival in d.o.rivals):
        d.wait(Phase.PENDING, ConditionReason.STARTING, "An older job with the same output.uri is being checked first.")
        d.look_again(d.o.now + timedelta(seconds=2))
        return False
    if refused is not None:
        d.condition(ConditionType.ACCEPTED, False, refused.reason, refused.message)
        d.fail(Failure(refused.reason, refused.message))
        return False
    d.condition(ConditionType.ACCEPTED, True, ConditionReason.ACCEPTED)
    d.set(
        start_time=timestamp(d.o.now),
        resolved=resolved_spec(d.o.job, spec, d.o.settings).to_api(),
        images=run_settings(d.o.settings).images,
        phase=Phase.PENDING,
    )
    return True


def lay_foundation(d: Draft, spec: FineTuneJobSpec) -> bool:
    """The policies and the run file are there before any pod."""
    job, settings = d.o.job, d.settings
    phase = d.status.phase or Phase.PENDING
    for kind, name in (
        ("NetworkPolicy", DENY_POLICY),
        ("NetworkPolicy", job.name),
        ("ConfigMap", run_file_name(job.name)),
    ):
        if not d.may_create(kind, name, phase):
            return False
    for policy in (deny_policy(job.namespace), allow_policy(job, spec, settings)):
        found = d.o.policies.get(policy["metadata"]["name"])
        if found != policy["spec"] and not d.lay(Create(policy) if found is None else Mend(policy), phase):
            return False
    if not d.o.run_file and not d.lay(Create(run_config_map(job, spec, settings)), phase):
        return False
    resume(d)
    return True


def prepare(d: Draft, spec: FineTuneJobSpec) -> bool:
    """Find every mistake and make tokens and a plan, before a GPU is taken."""
    if d.holds(ConditionType.PREPARED):
        return True
    found = run_step(d, Step.PREPARE, read_prepared)
    if found is None:
        keep_deadline(d, spec)
        return False
    d.set(plan=found.plan, license=found.license, retries=0, storage_unavailable_since=None)
    reason = ConditionReason.ALREADY_TRAINED if found.staged else ConditionReason.PREPARED
    d.condition(ConditionType.PREPARED, True, reason)
    _note_egress(d, spec, found.egress)
    if found.reused is not None:
        message = found.message or ConditionReason.ALREADY_PUBLISHED.meaning
        d.complete(found.reused, found.evaluation, ConditionReason.ALREADY_PUBLISHED, message)
        return False
    return True


def train_or_wait(d: Draft, spec: FineTuneJobSpec) -> bool:
    """Train until an adapter is staged; one that was there already is published when its owner lets it."""
    if d.holds(ConditionType.PREPARED, ConditionReason.ALREADY_TRAINED):
        return d.status.phase is Phase.PUBLISHING or not kept_back(d)
    if not is_trained(d):
        train(d)
    if is_trained(d):
        return True
    keep_deadline(d, spec)
    return False


def publish(d: Draft, spec: FineTuneJobSpec) -> bool:
    """Verify and publish; spec.suspend has no effect any more."""
    if d.status.phase is not Phase.PUBLISHING:
        d.advance(Phase.PUBLISHING)
    found = run_step(d, Step.PUBLISH, read_published)
    if found is not None:
        _note_egress(d, spec, found.egress)
        if found.trained is not None:
            note_end(d, found.trained)
        d.complete(found.output, found.evaluation, ConditionReason.PUBLISHED, "")
    return False


def keep_deadline(d: Draft, spec: FineTuneJobSpec) -> None:
    """Fail the job when preparing and training have no time left; queueing does not count."""
    limit = spec.active_deadline_seconds
    if limit is None or d.status.phase in FINAL:
        return
    left = limit - d.active_seconds()
    if left <= 0:
        message = f"Preparing and training took {d.active_seconds()} s, and spec.activeDeadlineSeconds is {limit}."
        d.actions = [action for action in d.actions if isinstance(action, Delete)]
        d.fail(Failure(FailureReason.DEADLINE_EXCEEDED, message))
    elif d.status.active_since is not None:
        d.look_again(d.o.now + timedelta(seconds=left))


def _note_egress(d: Draft, spec: FineTuneJobSpec, proof: EgressProof) -> None:
    """What the processes proved; the numbers come from the step's own message."""
    if spec.network.egress is Egress.OPEN:
        d.condition(ConditionType.EGRESS_RESTRICTED, False, ConditionReason.OPEN)
    elif proof.processes and proof.processes == proof.control_answered == proof.canary_refused:
        message = f"{proof.processes} of {proof.processes} processes: control answered, canary refused."
        d.condition(ConditionType.EGRESS_RESTRICTED, True, ConditionReason.ENFORCED, message)
    elif proof.canary_refused < proof.processes:
        d.condition(ConditionType.EGRESS_RESTRICTED, False, ConditionReason.NOT_ENFORCED)
    else:
        d.condition(ConditionType.EGRESS_RESTRICTED, False, ConditionReason.UNPROVEN)


def _unreadable(o: Observation) -> Decision:
    """A stored object that does not parse: refused when it is new; else said, and left as it is."""
    draft, found = Draft(o, None), refusal(o)
    failure = Failure(FailureReason.SPEC_INVALID, found.message if found else "")
    if o.status.phase in FINAL:
        return Decision(o.status)
    if o.status.start_time is None:
        draft.condition(ConditionType.ACCEPTED, False, failure.reason, failure.message)
        draft.fail(failure)
    else:
        message = f"The stored job does not parse with this operator: {failure.message}"
        draft.wait(o.status.phase or Phase.PENDING, failure.reason, message)
        draft.condition(ConditionType.STALLED, True, failure.reason, message)
    return draft.decision()
