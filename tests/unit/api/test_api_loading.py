"""Every mistake in a file is told with file, line, field, what was expected and what was found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJob
from cloister_api.loading import load_job, load_jobs
from cloister_api.reasons import FailureReason
from support.api_jobs import SMALLEST

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
HEAD = """\
apiVersion: cloister.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: contracts
spec:
  model: {uri: s3://models/m}
  dataset: {uri: s3://datasets/d}
  output: {uri: s3://adapters/a}
"""


def refusal(text: str) -> list[str]:
    """The lines of the refusal of a file named job.yaml."""
    with pytest.raises(CloisterError) as caught:
        load_job(text, "job.yaml")
    assert caught.value.reason == FailureReason.SPEC_INVALID
    return caught.value.message.splitlines()


def test_the_smallest_job_of_the_design_loads() -> None:
    (job,) = load_jobs(GOLDEN / "smallest-job.yaml")
    assert job == FineTuneJob.model_validate(SMALLEST)


# A line or two after HEAD (from line 9 on), and the one sentence that refuses the file.
FIELDS = [
    ("  lora: {rnk: 8}", "9: spec.lora.rnk: unknown field; did you mean rank?"),
    ("  lora: {Rank: 8}", "9: spec.lora.Rank: unknown field; did you mean rank?"),
    ("  training: {learning_rate: 1}", "9: spec.training.learning_rate: unknown field; did you mean learningRate?"),
    ("  storage: {xyz: 1}", "9: spec.storage.xyz: unknown field; known are secretName, runUri"),
    ("  trainning: {}", "9: spec.trainning: unknown field; did you mean training?"),
    ("sepc: {}", "9: sepc: unknown field; did you mean spec?"),
    (
        '  lora:\n    rank: "16"',
        '10: spec.lora.rank: expected a whole number from 1 to 512, found the text "16"; remove the quotes',
    ),
    ("  lora: {rank: true}", "9: spec.lora.rank: expected a whole number from 1 to 512, found the boolean true"),
    ("  lora: {rank: 1.5}", "9: spec.lora.rank: expected a whole number from 1 to 512, found the number 1.5"),
    ("  lora: {rank: 0}", "9: spec.lora.rank: expected a whole number from 1 to 512, found the number 0"),
    ("  lora: {rank: 513}", "9: spec.lora.rank: expected a whole number from 1 to 512, found the number 513"),
    (
        f"  lora: {{rank: {'9' * 5000}}}",
        f'9: spec.lora.rank: expected a whole number from 1 to 512, found the text "{"9" * 80}…"',
    ),
    ("  lora: {rank: [16]}", "9: spec.lora.rank: expected a whole number from 1 to 512, found a list"),
    ("  lora: 16", "9: spec.lora: expected a mapping, found the number 16"),
    ("  lora: {alpha: 0}", "9: spec.lora.alpha: expected a number above 0 and at most 4096, found the number 0"),
    ("  lora: {dropout: 1}", "9: spec.lora.dropout: expected a number of at least 0 and below 1, found the number 1"),
    (
        "  training: {learningRate: '2e-4'}",
        '9: spec.training.learningRate: expected a number above 0 and at most 1, found the text "2e-4"; '
        "remove the quotes",
    ),
    (
        "  lora: {quantization: nf4}",
        '9: spec.lora.quantization: expected one of None, NF4, found the text "nf4"; did you mean NF4?',
    ),
    (
        "  training: {packing: on}",
        "9: spec.training.packing: expected one of Auto, Always, Never, found the boolean true",
    ),
    ("  suspend: 'true'", '9: spec.suspend: expected true or false, found the text "true"; remove the quotes'),
    ("  suspend: 1", "9: spec.suspend: expected true or false, found the number 1"),
    (
        "  provenance: {ticket: 4711}",
        "9: spec.provenance.ticket: expected text, found the number 4711; put it in quotes",
    ),
    (
        "  checkpoint: {interval: 10 minutes}",
        '9: spec.checkpoint.interval: expected a length of time such as 90s, 10m or 1h30m, found the text "10 minutes"',
    ),
    (
        "  distribution: {gpuMemory: 80GB}",
        '9: spec.distribution.gpuMemory: expected a quantity such as 80Gi or 500m, found the text "80GB"',
    ),
    (
        "  pods: {head: {resources: {limits: {cpu: 0.5}}}}",
        "9: spec.pods.head.resources.limits.cpu: expected a quantity such as 8, 500m or 64Gi, found the number 0.5; "
        "put it in quotes",
    ),
    (
        "  pods: {worker: {nodeSelector: {gpu: yes}}}",
        "9: spec.pods.worker.nodeSelector.gpu: expected the value of a Kubernetes label (letters, digits, -, _ and .), "
        "found the boolean true; put it in quotes",
    ),
    (
        "  pods:\n    worker:\n      tolerations:\n      - {operator: exists}",
        "12: spec.pods.worker.tolerations[0].operator: expected one of Exists, Equal, "
        'found the text "exists"; did you mean Exists?',
    ),
    (
        "  storage: {runUri: pvc://claim/runs}",
        '9: spec.storage.runUri: expected s3://bucket/path or file:///path, found the text "pvc://claim/runs"',
    ),
    (
        "  storage: {runUri: 's3://KEY:SEC/RET@runs/x'}",
        '9: spec.storage.runUri: expected s3://bucket/path or file:///path, found the text "s3://***@runs/x"; '
        "keys belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the job's Secret, never in a URI",
    ),
    (
        "  storage: {runUri: 's3://models/m/runs'}",
        "9: spec.storage.runUri: lies in spec.model.uri: what the job writes there would change what it reads; "
        "choose a place outside",
    ),
    (
        '  "\\x1b[2Jlora": {}',
        "9: spec.?[2Jlora: unknown field; did you mean lora?",
    ),
    (
        '  hold: "\\x9b2J"',
        '9: spec.hold: expected one of None, BeforeTraining, found the text "?2J"',
    ),
    (
        '  provenance: {ticket: "\\ud800x"}',
        "9: a text holds half of a \\u pair (\\ud800 to \\udfff); write the character itself",
    ),
    (f"  pods: {'[' * 220}{']' * 220}", "9: the values are nested more than 100 deep"),
    ("  resumeFrom: {}", "9: spec.resumeFrom.uri: missing; expected s3://bucket/path or file:///path"),
    (
        "  lora: {targets: {modules: []}}",
        "9: spec.lora.targets.modules: expected at least 1 entry, found 0",
    ),
    (
        f"  lora: {{targets: {{modules: [{', '.join('m' * 65)}]}}}}",
        "9: spec.lora.targets.modules: expected at most 64 entries, found 65",
    ),
    (
        f"  provenance: {{ticket: {'x' * 257}}}",
        "9: spec.provenance.ticket: expected at most 256 characters, found 257",
    ),
    (
        "  lora: {targets: {modules: [-]}}",
        '9: spec.lora.targets.modules[0]: expected a module\'s name (letters, digits, _, . and *), found the text "-"',
    ),
    (
        "  lora: {targets: {modules: [null]}}",
        "9: spec.lora.targets.modules[0]: expected a module's name (letters, digits, _, . and *), found nothing",
    ),
    (
        "  distribution: {minWorkers: 0}",
        "9: spec.distribution.minWorkers: expected a whole number from 1 to 1,024, found the number 0",
    ),
    (
        "  distribution: {minWorkers: 2}",
        "9: spec.distribution: distribution.minWorkers is at most distribution.workers",
    ),
    (
        "  lora: {quantization: NF4}\n  distribution: {zeroStage: 3}",
        "5: spec: lora.quantization NF4 needs distribution.zeroStage 2 or lower",
    ),
    (
        "  resumeFrom: {uri: s3://runs/../x}",
        "9: spec.resumeFrom.uri: a URI has no . or .. in its path",
    ),
]


@pytest.mark.parametrize(("lines", "sentence"), FIELDS, ids=[sentence for _, sentence in FIELDS])
def test_a_field_that_cannot_be(lines: str, sentence: str) -> None:
    assert refusal(f"{HEAD}{lines}\n") == [f"job.yaml:{sentence}"]


# A whole file, and the one sentence that refuses it.
FILES = [
    ("", "job.yaml: the file is empty; expected a FineTuneJob"),
    ("# later\n---\n", "job.yaml: the file is empty; expected a FineTuneJob"),
    (
        "- a\n",
        "job.yaml:1: expected a FineTuneJob, a mapping with apiVersion, kind, metadata and spec; found a list",
    ),
    (
        "hello\n",
        "job.yaml:1: expected a FineTuneJob, a mapping with apiVersion, kind, metadata and spec; found text",
    ),
    ("spec: {}\n", "job.yaml:1: kind: missing; expected kind: FineTuneJob"),
    ("a: 1\n\nkind: Deployment\n", "job.yaml:3: kind: expected FineTuneJob, found Deployment"),
    ("kind: [x]\n", 'job.yaml:1: kind: expected FineTuneJob, found ["x"]'),
    ("kind: FineTuneJob\n", "job.yaml:1: apiVersion: missing; expected apiVersion: cloister.dev/v1alpha1"),
    (
        HEAD.replace("v1alpha1", "v1"),
        "job.yaml:1: apiVersion: expected cloister.dev/v1alpha1, found cloister.dev/v1",
    ),
    (f"{HEAD}---\n{HEAD}", "job.yaml:10: expected one FineTuneJob, found 2 documents"),
    (f"{HEAD}  lora:\n\t  rank: 1\n", "job.yaml:10: found a tab; YAML takes spaces only"),
    (f"{HEAD}spec: {{}}\n", "job.yaml:9: spec is given twice, first on line 5; keep one"),
    (HEAD.replace("  name: contracts", "  nmae: x"), "job.yaml:3: metadata.name: missing; expected lower-case letters"),
    (HEAD.replace("contracts", "Contracts"), 'starting with a letter, found the text "Contracts"'),
    (HEAD.replace("contracts", "c" * 41), "job.yaml:4: metadata.name: expected at most 40 characters, found 41"),
    (HEAD.replace("s3://models/m", "hf://org/m"), "job.yaml:6: spec.model.uri: expected s3://bucket/path, pvc://claim"),
    (HEAD.replace("  model: {uri: s3://models/m}\n", ""), "job.yaml:5: spec.model: missing; expected a mapping"),
    (HEAD.replace("{uri: s3://models/m}", ""), "job.yaml:6: spec.model: missing; expected a mapping"),
    (HEAD[: HEAD.index("spec:")] + "spec: []\n", "job.yaml:5: spec: expected a mapping, found a list"),
]


@pytest.mark.parametrize(("text", "sentence"), FILES, ids=[sentence for _, sentence in FILES])
def test_a_file_that_cannot_be(text: str, sentence: str) -> None:
    (line,) = refusal(text)
    assert sentence in line


def test_all_problems_of_a_file_are_told_at_once_in_its_order() -> None:
    lines = refusal(f"{HEAD}  training: {{seed: -1}}\n  lora:\n    rnk: 1\n    alpha: x\n  suspend: 3\n")
    assert [line.split(":")[1] for line in lines] == ["9", "11", "12", "13"]


def test_very_many_problems_are_counted() -> None:
    lines = refusal(HEAD + "".join(f"  unknown{number}: 1\n" for number in range(60)))
    assert len(lines) == 51
    assert lines[-1] == "and 10 more"


def test_a_long_value_is_shown_only_in_part() -> None:
    (line,) = refusal(f"{HEAD}  checkpoint: {{interval: {'x' * 30}{'secret' * 20}}}\n")
    assert len(line) < 200


@pytest.mark.parametrize("field", ["model", "dataset", "output"])
@pytest.mark.parametrize("uri", ["s3://KEY:SECRET@b/x", "s3://SECRET@b/x", "https://KEY:SECRET@b", "s3://b:SECRET/x"])
def test_no_place_holds_a_password_and_none_is_repeated(field: str, uri: str) -> None:
    (line,) = refusal(re.sub(rf"({field}: {{uri:) \S+}}", rf"\1 '{uri}'}}", HEAD))
    assert f"spec.{field}.uri: expected s3://bucket/path" in line
    assert "SECRET@" not in line


def test_numbers_and_booleans_are_those_of_kubectl() -> None:
    job = load_job(
        f"{HEAD}  training: {{learningRate: 2e-4, maxSteps: 1e5, epochs: 1, seed: 010}}\n  suspend: off\n", "j"
    )
    assert job.spec.training.learning_rate == 2e-4
    assert (job.spec.training.max_steps, job.spec.training.epochs, job.spec.training.seed) == (100_000, 1.0, 8)
    assert job.spec.suspend is False


def test_a_field_that_holds_nothing_is_absent_as_for_the_api_server() -> None:
    job = load_job(f"{HEAD}  lora:\n  resumeFrom: null\n  training: {{maxSteps: ~}}\n", "j")
    assert job == load_job(HEAD, "j")


def test_what_a_cluster_adds_does_not_matter() -> None:
    stored = json.loads(json.dumps(SMALLEST))
    stored["metadata"] |= {
        "uid": "x",
        "generation": 2,
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "managedFields": [],
    }
    stored["status"] = {"phase": "Complete", "something": "newer"}
    assert load_job(json.dumps(stored), "j").spec == load_job(json.dumps(SMALLEST), "j").spec


def test_a_file_may_hold_several_jobs(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(f"{HEAD}---\n{HEAD.replace('contracts', 'letters')}")
    assert [job.metadata.name for job in load_jobs(path)] == ["contracts", "letters"]


def test_another_kind_among_the_jobs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(f"{HEAD}---\nkind: Secret\n---\n{HEAD}  holdd: x\n")
    with pytest.raises(CloisterError) as caught:
        load_jobs(path)
    assert caught.value.message.splitlines() == [
        f"{path}:10: kind: expected FineTuneJob, found Secret",
        f"{path}:20: spec.holdd: unknown field; did you mean hold?",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for name, sentence in {
        "absent.yaml": "cannot be read: No such file or directory",
        ".": "cannot be read: Is a directory",
        "latin.yaml": "not UTF-8 text (at byte 3); save the file as UTF-8",
    }.items():
        with pytest.raises(CloisterError) as caught:
            load_jobs(tmp_path / name)
        assert caught.value.message == f"{tmp_path / name}: {sentence}"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert load_jobs(path)[0].metadata.name == "contracts"
