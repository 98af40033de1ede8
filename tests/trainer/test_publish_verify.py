"""cloister verify and the signature: what was published is proven, and every change to it is found."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from model_signing import hashing, verifying

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.publish.main import publish
from cloister_trainer.publish.verify import Result, VerifyReport, to_json, verify_adapter
from cloister_trainer.publish.verify_page import render_page
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage
from support.failing_storage import Crash, RecordingStorage
from support.signing import KeyPair, make_keys
from support.staged_run import stage

EGRESS = {"processes": 2, "controlAnswered": 2, "canaryRefused": 2, "time": "2026-01-01T10:00:00+00:00"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_adapter: Path, keys: KeyPair
) -> tuple[Path, str]:
    """A signed adapter published once, and its uid."""
    root = tmp_path_factory.mktemp("signed")
    staged = stage(root.as_uri(), tiny_llama, tiny_adapter)
    staged.plan = staged.plan.model_copy(update={"egress": EGRESS})
    staged.checks = staged.checks.model_copy(update={"egress": EGRESS})
    storage = open_storage(environ={})
    staged.store(storage)
    publish(staged.run, staged.plan, storage, Reporter(), root / "scratch", keys.private, egress=EGRESS)
    return root / "out/contracts", staged.run.uid


@pytest.fixture
def output(published: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the published output that a test may damage."""
    return shutil.copytree(published[0], tmp_path / "copy")


@pytest.fixture
def folder(output: Path, published: tuple[Path, str]) -> Path:
    return output / published[1]


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


def result_of(report: VerifyReport, name: str) -> tuple[Result, str]:
    (check,) = [check for check in report.checks if check.name == name]
    return check.result, check.detail


def test_what_was_published_is_verified(output: Path, storage: Storage, keys: KeyPair) -> None:
    report = verify_adapter(storage, output.as_uri(), keys.public)

    assert report.ok
    assert {check.result for check in report.checks} == {Result.PASSED}
    assert json.loads(to_json(report))["manifest"]["dataset"]["digest"] == "e" * 64


def test_the_package_s_own_verifier_agrees(folder: Path, keys: KeyPair) -> None:
    ignored = hashing.Config().set_ignored_paths(paths=["manifest.json", "model.sig"])
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=keys.public).set_hashing_config(ignored)

    verifier.verify(folder, folder / "model.sig")

    verifying.Config().use_elliptic_key_verifier(public_key=keys.public).verify(folder, folder / "model.sig")
    (folder / "README.md").write_text("another card")
    with pytest.raises(ValueError, match=r"README\.md"):
        verifier.verify(folder, folder / "model.sig")


def test_the_page_tells_an_officer_what_is_proven_and_what_is_not(
    output: Path, storage: Storage, keys: KeyPair
) -> None:
    page = render_page(verify_adapter(storage, output.as_uri(), keys.public))

    for fact in (
        "Adapter verification: VERIFIED",
        "requestedBy: Ada Lovelace, ticket: LEGAL-17",
        "apache-2.0 (evidence: LicenseText, LICENSE)",
        "sha256 " + "e" * 64,
        "sha256 " + "f" * 64,
        "6 of 6 processes: control answered, canary refused.",
        "deleted at",
        "Not proven by this page",
        "Signature ____",
    ):
        assert fact in page
    assert all(len(line) <= 100 for line in page.splitlines() if "file://" not in line)
    assert len(page.splitlines()) <= 66, "one page"


def test_without_a_key_nothing_is_claimed_of_the_signature(output: Path, storage: Storage) -> None:
    report = verify_adapter(storage, output.as_uri())

    assert report.ok
    assert result_of(report, "signature") == (Result.NOT_CHECKED, "signed, and no key was given (--key).")
    assert any("only a signature" in sentence for sentence in report.not_proven)


@dataclass(frozen=True)
class Change:
    name: str
    do: Callable[[Path], object]
    check: str
    said: str


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


CHANGES = [
    Change("a bit", lambda f: flip_last_byte(f / "adapter_model.safetensors"), "files", "changed: adapter_model"),
    Change("the licence", lambda f: (f / "LICENSE").unlink(), "files", "missing: LICENSE"),
    Change("a new file", lambda f: (f / "x.py").write_text("pass"), "nothing else", "does not name x.py"),
    Change("the seed", lambda f: replace_in(f / "manifest.json", b'"seed": 42', b'"seed": 43'), "pointer", "sha256"),
    Change(
        "the requester",
        lambda f: replace_in(f / "manifest.json", b"Ada Lovelace", b"Eve"),
        "pointer",
        "current.json names",
    ),
    Change(
        "the proof",
        lambda f: replace_in(f / "manifest.json", b'"canaryRefused": 2', b'"canaryRefused": 3'),
        "recorded facts",
        "train's egress proof",
    ),
    Change(
        "another dataset",
        lambda f: replace_in(f / "manifest.json", b"e" * 64, b"0" * 64),
        "recorded facts",
        "Dataset's digest",
    ),
    Change("no manifest", lambda f: (f / "manifest.json").unlink(), "manifest", "missing"),
    Change("half a manifest", lambda f: (f / "manifest.json").write_text("{}"), "manifest", "not a manifest"),
    Change("the card", lambda f: (f / "README.md").write_text("x"), "signature", "README.md"),
    Change("no signature", lambda f: (f / "model.sig").unlink(), "signature", "no model.sig"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_every_change_is_found(change: Change, output: Path, folder: Path, storage: Storage, keys: KeyPair) -> None:
    change.do(folder)

    report = verify_adapter(storage, output.as_uri(), keys.public)

    assert not report.ok
    result, detail = result_of(report, change.check)
    assert result is Result.FAILED
    assert change.said in detail
    assert "NOT VERIFIED: do not use this adapter" in render_page(report)


def test_files_manifest_and_pointer_changed_together_fail_at_the_signature(
    output: Path, folder: Path, storage: Storage, keys: KeyPair
) -> None:
    """Whoever can write to the store can forge everything but the signature."""
    old = hashlib.sha256((folder / "README.md").read_bytes()).hexdigest()
    text = (folder / "README.md").read_text().replace("Limits, risks and", "No risks, and all")
    (folder / "README.md").write_text(text)
    replace_in(folder / "manifest.json", old.encode(), hashlib.sha256(text.encode()).hexdigest().encode())
    name_manifest(output, folder)

    assert "No risks" in text
    assert verify_adapter(storage, output.as_uri()).ok
    report = verify_adapter(storage, output.as_uri(), keys.public)
    assert result_of(report, "signature")[0] is Result.FAILED
    assert {check.name for check in report.checks if check.result is Result.FAILED} == {"signature"}


def name_manifest(output: Path, folder: Path) -> None:
    """Let current.json name manifest.json as it is now."""
    pointer = json.loads((output / "current.json").read_text())
    pointer["manifestDigest"] = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (output / "current.json").write_text(json.dumps(pointer))


FORGERIES: list[tuple[str, dict[str, Any], str]] = [
    ("baseModel", {"license": {"id": "mit", "evidence": "LicenseText", "file": "LICENSE"}}, "Base model's licence"),
    ("baseModel", {"license": {"id": "apache-2.0", "evidence": "Stated"}}, "Base model's licence"),
    ("baseModel", {"architecture": "Llama"}, "architecture"),
    ("baseModel", {"uri": "s3://models/tiny"}, "the base model's URI"),
    ("provenance", {"requestedBy": "Ada"}, "requestedBy (stated)"),
    ("provenance", {"requestedBy": None}, "requestedBy (stated)"),
    ("provenance", {"dataClassification": "public"}, "dataClassification (stated)"),
    ("provenance", {"requestedBy": None, "ticket": None}, "ticket (stated)"),
    ("dataset", {"digest": "e"}, "Dataset's digest"),
    ("egress", {"summary": "6"}, "Network access"),
]


@pytest.mark.parametrize(("section", "forged", "said"), FORGERIES)
@pytest.mark.parametrize("signed", [False, True])
def test_a_manifest_and_pointer_forged_together_disagree_with_the_card(
    section: str,
    forged: dict[str, Any],
    said: str,
    signed: bool,
    output: Path,
    folder: Path,
    storage: Storage,
    keys: KeyPair,
) -> None:
    """The signature covers the card and not the manifest, which therefore must repeat the card word for word."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[section] = {key: value for key, value in (manifest[section] | forged).items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    name_manifest(output, folder)

    report = verify_adapter(storage, output.as_uri(), keys.public if signed else None)

    assert not report.ok
    assert said in result_of(report, "recorded facts")[1]
    assert {check.name for check in report.checks if check.result is Result.FAILED} == {"recorded facts"}


def test_a_manifest_without_its_provenance_disagrees_with_the_card(
    output: Path, folder: Path, storage: Storage, keys: KeyPair
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["provenance"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"name": "contract"}))
    name_manifest(output, folder)

    report = verify_adapter(storage, output.as_uri(), keys.public)

    assert not report.ok
    assert "on the name, the card's row requestedBy" in result_of(report, "recorded facts")[1]


def test_another_key_does_not_verify(output: Path, storage: Storage, tmp_path: Path) -> None:
    other = make_keys(tmp_path)

    result, detail = result_of(verify_adapter(storage, output.as_uri(), other.public), "signature")

    assert result is Result.FAILED
    assert "does not match the provided public key" in detail


def test_a_folder_can_be_named_itself(output: Path, folder: Path, storage: Storage, keys: KeyPair) -> None:
    assert verify_adapter(storage, folder.as_uri(), keys.public).ok
    assert verify_adapter(storage, f"{folder.as_uri()}/manifest.json").uri == folder.as_uri()
    assert verify_adapter(storage, f"{output.as_uri()}/current.json").uri == folder.as_uri()


def test_a_superseded_folder_says_so(output: Path, folder: Path, storage: Storage) -> None:
    pointer = json.loads((output / "current.json").read_text())
    (output / "current.json").write_text(json.dumps(pointer | {"folder": "another"}))

    result, detail = result_of(verify_adapter(storage, folder.as_uri()), "pointer")

    assert result is Result.NOT_CHECKED
    assert "no longer" in detail


def test_nothing_published_is_an_error_with_what_was_expected(tmp_path: Path, storage: Storage) -> None:
    with pytest.raises(CloisterError, match=r"expected current\.json") as refused:
        verify_adapter(storage, (tmp_path / "empty").as_uri())

    assert refused.value.reason is FailureReason.ADAPTER_INVALID


def test_a_signature_that_a_crash_left_behind_is_kept(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage, keys: KeyPair
) -> None:
    """ECDSA signatures are random: a second publisher of the run must not write over one that a manifest may name."""
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    staged.store(storage)
    scratch = tmp_path / "scratch"
    undisturbed = RecordingStorage()
    publish(staged.run, staged.plan, undisturbed, Reporter(), scratch, keys.private)
    sealing = undisturbed.calls.index(("create", staged.run.output.manifest))
    shutil.rmtree(tmp_path / "out")
    staged.store(storage)

    with pytest.raises(Crash):
        publish(staged.run, staged.plan, RecordingStorage(sealing), Reporter(), scratch, keys.private)
    signature = storage.read(f"{staged.run.output.folder}/model.sig")
    publish(staged.run, staged.plan, storage, Reporter(), scratch, keys.private)

    assert storage.read(f"{staged.run.output.folder}/model.sig") == signature
    assert verify_adapter(storage, staged.run.spec.output.uri, keys.public).ok


def test_names_from_elsewhere_cannot_draw_on_the_terminal(output: Path, folder: Path, storage: Storage) -> None:
    (folder / "a\x1b[2Jb").write_text("x")

    assert "\x1b" not in render_page(verify_adapter(storage, output.as_uri()))
