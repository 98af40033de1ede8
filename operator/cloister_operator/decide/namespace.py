"""The policy that a namespace's jobs share: it has no owner, so it is removed when nothing needs it."""

from __future__ import annotations

from collections.abc import Sequence

from cloister_operator.decide.actions import Delete
from cloister_operator.names import DENY_POLICY, JOB_LABEL, MANAGED_BY_LABEL, MANAGER
from cloister_operator.observe import reading
from cloister_operator.observe.reading import Object


def unneeded_policy(jobs: Sequence[Object], pods: Sequence[Object], policies: Sequence[Object]) -> Delete | None:
    """The namespace's deny policy, once it has neither a job nor a pod with a job's label, whoever made that pod."""
    if any(not reading.deleting(job) for job in jobs) or any(JOB_LABEL in reading.labels(pod) for pod in pods):
        return None
    for policy in policies:
        ours = reading.labels(policy).get(MANAGED_BY_LABEL) == MANAGER
        if reading.name(policy) == DENY_POLICY and ours and not reading.deleting(policy):
            return Delete("NetworkPolicy", DENY_POLICY, reading.uid(policy))
    return None
