"""Every reason has a meaning, something to do, and an exit code; durations and quantities are Kubernetes' own."""

from __future__ import annotations

import pickle

import pytest

from cloister_api.errors import CloisterError
from cloister_api.exit_codes import ExitCode, exit_code_for
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.units import format_duration, parse_duration, parse_quantity

REFUSALS = [
    "SpecInvalid",
    "PolicyDenied",
    "NameConflict",
    "LicenseNotAllowed",
    "LicenseUnknown",
    "ModelNotFound",
    "ModelUnsupported",
    "DatasetNotFound",
    "DatasetInvalid",
    "OutputExists",
    "DoesNotFit",
    "SecretNotFound",
    "VolumeNotFound",
    "StorageAccessDenied",
    "StorageUnsupported",
]
FINAL = [
    "StorageFull",
    "LocalDiskFull",
    "ImagePullFailed",
    "PodsForbidden",
    "EgressNotEnforced",
    "LossDiverged",
    "SelfTestFailed",
    "EvaluationGateFailed",
    "AdapterInvalid",
    "SigningFailed",
    "DeadlineExceeded",
]
RETRYABLE = [
    "StorageUnavailable",
    "EgressUnproven",
    "OutOfMemory",
    "GpuOutOfMemory",
    "GpuFault",
    "CollectiveTimeout",
    "NodeLost",
    "WorkersLost",
    "NoProgress",
    "KubeRayMissing",
    "Internal",
]


def test_the_reasons_are_those_of_the_design() -> None:
    assert sorted(FailureReason) == sorted([*REFUSALS, *FINAL, *RETRYABLE])


@pytest.mark.parametrize("reason", FailureReason)
def test_a_reason_says_what_it_means_and_what_to_do(reason: FailureReason) -> None:
    for sentence in (reason.facts.meaning, reason.facts.action):
        assert sentence[0].isupper()
        assert sentence.endswith(".")
    assert not (reason.facts.retryable and reason.facts.refusal)


@pytest.mark.parametrize("reason", ConditionReason)
def test_a_condition_s_reason_has_a_meaning(reason: ConditionReason) -> None:
    assert reason.meaning.endswith(".")


@pytest.mark.parametrize("reason", FailureReason)
def test_exit_codes(reason: FailureReason) -> None:
    expected = {**dict.fromkeys(REFUSALS, 10), **dict.fromkeys(FINAL, 11), **dict.fromkeys(RETRYABLE, 12)}
    assert exit_code_for(reason) == expected[reason]
    assert (exit_code_for(reason) == ExitCode.RETRYABLE) == reason.facts.retryable


def test_access_denied_is_retryable_once_data_was_read() -> None:
    assert exit_code_for(FailureReason.STORAGE_ACCESS_DENIED, data_was_read=True) == ExitCode.RETRYABLE
    assert exit_code_for(FailureReason.STORAGE_FULL, data_was_read=True) == ExitCode.FAILED


def test_the_codes_are_those_of_the_design() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "USAGE": 2,
        "REFUSED": 10,
        "FAILED": 11,
        "RETRYABLE": 12,
        "INTERRUPTED": 130,
    }


def test_an_error_survives_the_way_between_processes() -> None:
    found = {"evaluation": {"gate": "Failed"}}
    error = CloisterError(FailureReason.GPU_FAULT, "GPU 3 fell off the bus.", step=12, node="gpu-7", result=found)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.message, copy.step, copy.node) == (error.reason, error.message, 12, "gpu-7")
    assert copy.result == found
    assert str(copy) == error.message


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("24h", 86_400), ("1h0m1s", 3601)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


def test_durations_are_written_short() -> None:
    assert [format_duration(seconds) for seconds in (0, 0.4, 59.6, 600, 5400, 90_061)] == [
        "0s",
        "0s",
        "1m",
        "10m",
        "1h30m",
        "25h1m1s",
    ]


@pytest.mark.parametrize("text", ["", "10", "m", "-1s", "1.5h", "10 m", "1m1h", "1d", "10m\n"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a length of time such as 90s, 10m or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("80Gi", 80 * 2**30),
        ("80G", 80 * 10**9),
        ("0.5Gi", 2**29),
        ("1.5k", 1500),
        ("1500m", 2),
        ("1Ki", 1024),
        ("1Ei", 2**60),
        ("2E", 2 * 10**18),
    ],
)
def test_quantities(text: str, number: int) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "Gi", "-1Gi", "80GB", "80 Gi", "1e3", "80gi", "1.Gi", ".5Gi"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity such as 80Gi or 500m"):
        parse_quantity(text)
