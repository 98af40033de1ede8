"""The run file, a run's uid, its place in the store, the reuse key: equal inputs give equal values, for ever."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cloister_api.job import FineTuneJob, FineTuneJobSpec
from cloister_api.layout import OutputLayout, RunLayout, cache_folder, join
from cloister_api.resolve import resolve_spec
from cloister_api.reuse import reuse_key
from cloister_api.run import Run, RunSettings, StorageDefaults, canonical_json, local_uid
from support.api_jobs import OTHER_VALUES, job_with

UID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
LISTING = [["s3://models/m/config.json", "700", "etag-1"], ["s3://datasets/d.jsonl", "9000", "etag-2"]]


def spec_with(**changes: object) -> FineTuneJobSpec:
    return FineTuneJob.model_validate(job_with({f"spec.{path}": value for path, value in changes.items()})).spec


def test_a_run_file_reads_back_as_it_was_written() -> None:
    settings = RunSettings(
        gpu_memory={"default": "80Gi"},
        allowed_licenses=["apache-2.0"],
        control_address="operator.cloister:8090",
        canary_address="operator.cloister:8091",
        storage=StorageDefaults(endpoint="https://s3.internal", run_uri="s3://cloister-runs/{namespace}"),
    )
    full = FineTuneJob.model_validate(job_with({f"spec.{field}": value for field, value in OTHER_VALUES.items()})).spec
    for spec in (spec_with(), full):
        run = Run(uid=UID, namespace="legal", name="contracts", spec=spec, settings=settings)
        assert Run.model_validate_json(run.model_dump_json(by_alias=True, exclude_none=True)) == run
        assert Run.model_validate(run.to_api()) == run


@pytest.mark.parametrize("uid", ["", "x", UID.upper(), UID + "/..", "../" + UID])
def test_a_uid_is_a_uuid(uid: str) -> None:
    with pytest.raises(ValidationError):
        Run(uid=uid, namespace="legal", name="contracts", spec=spec_with())


def test_the_same_command_and_inputs_have_the_same_uid_in_every_version() -> None:
    """Golden values: a change here turns every interrupted local run into a new one."""
    assert local_uid("legal", "contracts", spec_with(), LISTING) == "fc4ddcb7-ccc5-5c89-bdf1-7d767d9ee174"
    assert local_uid(None, "contracts", spec_with(), []) == "3f8b1798-461f-5d36-88bd-96e9be9c537a"


def test_a_uid_does_not_depend_on_the_order_of_the_listing_or_of_writing() -> None:
    uid = local_uid("legal", "contracts", spec_with(), LISTING)
    assert local_uid("legal", "contracts", spec_with(), LISTING[::-1]) == uid
    assert local_uid("legal", "contracts", spec_with(**{"lora.alpha": 32, "lora.rank": 16}), LISTING) == uid
    assert local_uid("local", "contracts", spec_with(), LISTING) == local_uid(None, "contracts", spec_with(), LISTING)


def test_releasing_or_suspending_a_run_goes_on_with_the_same_one() -> None:
    uid = local_uid("legal", "contracts", spec_with(), LISTING)
    for field, value in (("hold", "BeforeTraining"), ("suspend", True), ("ttlSecondsAfterFinished", 60)):
        assert local_uid("legal", "contracts", spec_with(**{field: value}), LISTING) == uid


def test_anything_changed_is_a_new_uid() -> None:
    changed = [
        ("legal", "contracts", spec_with(), LISTING),
        ("hr", "contracts", spec_with(), LISTING),
        ("legal", "letters", spec_with(), LISTING),
        ("legal", "contracts", spec_with(**{"lora.rank": 8}), LISTING),
        ("legal", "contracts", spec_with(), [[*LISTING[0][:2], "etag-9"], LISTING[1]]),
        ("legal", "contracts", spec_with(), LISTING[:1]),
    ]
    assert len({local_uid(*inputs) for inputs in changed}) == len(changed)


def test_canonical_json() -> None:
    assert canonical_json({"b": 1.0, "a": ["é", None]}) == '{"a":["é",null],"b":1.0}'


def test_the_run_folder() -> None:
    run = RunLayout("s3://runs/legal/", UID)
    assert run.root == f"s3://runs/legal/{UID}"
    relative = {
        "run.json": run.run_file,
        "plan.json": run.plan_file,
        "tokens": run.tokens,
        "checkpoints/step-000120": run.checkpoint(120),
        "metrics/from-000121.jsonl": run.metrics_part(121),
        "attempts/2/logs/rank-00.log": run.rank_log(2, 0),
        "adapter": run.adapter,
        "adapter/checks.json": run.checks_file,
        "merged": run.merged,
        "published.json": run.published_file,
    }
    assert {path: f"{run.root}/{path}" for path in relative} == relative


def test_names_of_checkpoints_and_metrics_sort_as_their_steps() -> None:
    run = RunLayout("s3://runs", UID)
    steps = [1, 9, 10, 99, 100, 999_999]
    assert sorted(map(run.checkpoint, steps)) == [run.checkpoint(step) for step in steps]
    assert sorted(map(run.metrics_part, steps)) == [run.metrics_part(step) for step in steps]


def test_the_output_folder_and_the_cache() -> None:
    output = OutputLayout("s3://adapters/legal/contracts", UID)
    assert output.pointer == "s3://adapters/legal/contracts/current.json"
    assert output.folder == f"s3://adapters/legal/contracts/{UID}"
    assert output.manifest == f"{output.folder}/manifest.json"
    assert cache_folder("s3://cache/", "ab12") == "s3://cache/ab12"
    assert join("file:///data/", "/a/", "b") == "file:///data/a/b"


def test_where_runs_lie() -> None:
    admin = RunSettings(storage=StorageDefaults(run_uri="s3://cloister-runs/{namespace}"))
    own = spec_with(**{"storage.runUri": "s3://mine/runs"})
    assert resolve_spec(own, "legal", admin).storage.run_uri == "s3://mine/runs"
    assert resolve_spec(spec_with(), "legal", admin).storage.run_uri == "s3://cloister-runs/legal"
    assert resolve_spec(spec_with(), None, admin).storage.run_uri == "s3://cloister-runs/local"
    local = resolve_spec(spec_with(), None, RunSettings())
    assert local.storage.run_uri == "s3://adapters/legal/contracts/runs"
    assert Run(uid=UID, namespace="local", name="x", spec=spec_with()).layout.run_uri == local.storage.run_uri


def test_a_profile_s_gpu_memory_is_used_where_the_job_says_nothing() -> None:
    settings = RunSettings(gpu_memory={"default": "80Gi", "small": "24Gi"})

    def memory(**distribution: object) -> str | None:
        spec = spec_with(**{f"distribution.{field}": value for field, value in distribution.items()})
        return resolve_spec(spec, "legal", settings).distribution.gpu_memory

    assert memory() == "80Gi"
    assert memory(profile="small") == "24Gi"
    assert memory(profile="unknown") is None
    assert memory(gpuMemory="40Gi") == "40Gi"
    assert memory(gpusPerWorker=0) is None


def test_resolving_changes_nothing_else() -> None:
    resolved = resolve_spec(spec_with(), "legal", RunSettings())
    assert resolved.model_copy(update={"storage": spec_with().storage}) == spec_with()
    assert resolve_spec(resolved, "legal", RunSettings()) == resolved


def test_the_reuse_key_is_the_same_in_every_version() -> None:
    """Golden values: a change here trains again what was published before."""
    assert (
        reuse_key(spec_with(), "fingerprint", "digest")
        == "081538f28279395dbbf41281e7a135018f035d45a20e9b94a923d5e99a9b15c8"
    )
    assert (
        reuse_key(spec_with(**{"lora.rank": 8}), "fingerprint", "digest")
        == "131e3540a2697b32ed50cfb4fc1b0a4a08a5fc9fb756efaab8cc50ad2c84edb3"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lora.rank", 8),
        ("training.seed", 1),
        ("dataset.trainOn", "All"),
        ("dataset.validation", {"fraction": 0.1}),
        ("dataset.uri", "s3://datasets/other"),
        ("model.license", "mit"),
        ("model.chatTemplate", {"inline": "x"}),
        ("evaluation.gate", {"minRelativeImprovement": 0}),
        ("evaluation.earlyStopping", {}),
        ("output.mergedModel", True),
        ("output.servableBy", ["VLLM"]),
    ],
)
def test_what_affects_the_result_changes_the_reuse_key(path: str, value: object) -> None:
    assert reuse_key(spec_with(**{path: value}), "f", "d") != reuse_key(spec_with(), "f", "d")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lora.rank", 16),
        ("lora.targets", {"preset": "Auto"}),
        ("training.learningRate", 0.0002),
        ("distribution.workers", 4),
        ("pods.worker.nodeSelector", {"gpu": "h100"}),
        ("model.cache", {"claimName": "weights"}),
        ("dataset.cacheUri", "s3://cache"),
        ("output.uri", "s3://adapters/other"),
        ("output.ifExists", "Reuse"),
        ("storage.secretName", "other"),
        ("checkpoint.interval", "1m"),
        ("provenance.ticket", "X-1"),
    ],
)
def test_what_does_not_affect_the_result_does_not_change_the_reuse_key(path: str, value: object) -> None:
    assert reuse_key(spec_with(**{path: value}), "f", "d") == reuse_key(spec_with(), "f", "d")


def test_the_adapter_that_training_starts_from_changes_the_reuse_key() -> None:
    spec = spec_with(**{"lora.initFrom": {"uri": "s3://adapters/first"}})
    assert len({reuse_key(spec, "f", "d", adapter) for adapter in (None, "a", "b")}) == 3


def test_model_and_data_change_the_reuse_key() -> None:
    assert len({reuse_key(spec_with(), model, data) for model in "ab" for data in "cd"}) == 4
