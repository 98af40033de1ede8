"""Putting into a spec what is chosen without looking at data."""

from __future__ import annotations

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJobSpec
from cloister_api.layout import join
from cloister_api.places import misplaced
from cloister_api.reasons import FailureReason
from cloister_api.run import LOCAL_NAMESPACE, RunSettings


def resolve_spec(spec: FineTuneJobSpec, namespace: str | None, settings: RunSettings) -> FineTuneJobSpec:
    """`spec` with the administrator's defaults in the fields that it leaves out.

    storage.runUri becomes the administrator's, with `{namespace}` replaced, or `<output.uri>/runs` where none is set;
    distribution.gpuMemory becomes the profile's. Everything else that is absent waits for the plan.

    Raises CloisterError(SpecInvalid) when something that is written lies among what is read.
    """
    storage = spec.storage
    if storage.run_uri is None:
        default = (settings.storage.run_uri or "").replace("{namespace}", namespace or LOCAL_NAMESPACE)
        storage = storage.model_copy(update={"run_uri": default or join(spec.output.uri, "runs")})
    distribution = spec.distribution
    profile_memory = settings.gpu_memory.get(distribution.profile)
    if distribution.gpu_memory is None and distribution.gpus_per_worker > 0 and profile_memory:
        distribution = distribution.model_copy(update={"gpu_memory": profile_memory})
    resolved = spec.model_copy(update={"storage": storage, "distribution": distribution})
    if problems := misplaced(resolved):
        raise CloisterError(FailureReason.SPEC_INVALID, "\n".join(map(str, problems)))
    return resolved
