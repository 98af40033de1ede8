"""Publishing a run once more: retries, a second publisher of the same run, and runs whose adapter was replaced."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.status import OutputStatus
from cloister_trainer.publish.check import check_output
from cloister_trainer.publish.verify import verify_adapter
from cloister_trainer.storage import Storage, open_storage
from support.failing_storage import Crash, RecordingStorage
from support.publishing import FIRST, SECOND, OvertakenStorage, Place, compute_once, moves_pointer, with_merged
from support.signing import KeyPair, make_keys
from support.staged_run import StagedRun, manifest_of


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage) -> Place:
    return Place(tmp_path, tiny_llama, tiny_adapter, storage)


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return make_keys(tmp_path)


def check_of(place: Place, staged: StagedRun) -> OutputStatus:
    found = check_output(staged.run, place.storage, None, None)
    assert found is not None
    assert found.uid == staged.run.uid
    return found.output


@pytest.mark.parametrize("if_exists", ["Fail", "Reuse", "Replace"])
@pytest.mark.parametrize("keep_run", ["OnFailure", "Always"])
def test_a_run_whose_adapter_was_replaced_stays_published_and_does_not_come_back(
    if_exists: str, keep_run: str, place: Place
) -> None:
    first = place.staged(FIRST, if_exists, output={"keepRun": keep_run})
    status = place.publish(first)
    place.publish(place.staged(SECOND, "Replace"))

    assert place.publish(first) == check_of(place, first) == status
    assert status.uri.endswith(FIRST)
    assert place.named() == SECOND


def test_a_second_publisher_of_the_same_run_changes_nothing_at_whatever_call_it_is_overtaken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was given up comes back while the pod that took its place publishes; its proof was another."""

    def staged() -> StagedRun:
        place.storage.delete_prefix(place.root.as_uri() + "/out")
        return with_merged(place.staged(FIRST, output={"mergedModel": True}), place.storage)

    compute_once(monkeypatch)
    undisturbed = RecordingStorage()
    place.publish(staged(), undisturbed)
    assert len(undisturbed.calls) > 30

    for number, call in enumerate(undisturbed.calls):
        run = staged()
        overtake = partial(place.publish, run, canary_refused=0)
        slow = OvertakenStorage(overtake, lambda at, *_, chosen=number: at == chosen)

        status = place.publish(run, slow)

        assert slow.overtaken
        report = verify_adapter(place.storage, run.run.spec.output.uri)
        assert report.ok, (number, call, report.checks)
        assert status == check_of(place, run), (number, call)


def test_whoever_moves_the_pointer_to_the_same_manifest_agrees(place: Place) -> None:
    first = place.staged(FIRST)

    status = place.publish(first, OvertakenStorage(lambda: place.publish(first), moves_pointer))

    assert status == check_of(place, first)
    assert place.named() == FIRST


def refused_for_its_key(place: Place, staged: StagedRun, key: Path) -> str:
    with pytest.raises(CloisterError, match="leave the key out") as refused:
        place.publish(staged, key=key)
    assert refused.value.reason is FailureReason.SIGNING_FAILED
    return refused.value.message


def test_a_key_cannot_sign_what_is_published(place: Place, keys: KeyPair) -> None:
    first = place.staged(FIRST)
    place.publish(first)

    assert "is not signed" in refused_for_its_key(place, first, keys.private)
    with pytest.raises(CloisterError, match="is not signed"):
        check_output(first.run, place.storage, None, keys.private)
    reusing = place.staged(SECOND, "Reuse")
    assert f"run {FIRST} is complete and is not signed" in refused_for_its_key(place, reusing, keys.private)


def test_a_key_cannot_sign_what_another_key_signed(place: Place, keys: KeyPair, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, other = place.staged(FIRST), make_keys(tmp_path / "other")
    status = place.publish(first, key=keys.private)
    fingerprint = manifest_of(place.root / "out/contracts" / FIRST)["signature"]["publicKeySha256"]

    assert f"is signed with the key {fingerprint}" in refused_for_its_key(place, first, other.private)
    assert place.publish(first, key=keys.private) == place.publish(first) == status


def test_a_key_cannot_sign_what_a_crash_left_complete(place: Place, keys: KeyPair) -> None:
    undisturbed, first = RecordingStorage(), place.staged(FIRST)
    place.publish(first, undisturbed)
    place.storage.delete_prefix(first.run.spec.output.uri)
    place.storage.delete_prefix(first.run.layout.root)
    first = place.staged(FIRST)
    with pytest.raises(Crash):
        place.publish(first, RecordingStorage(undisturbed.calls.index(("create", first.run.output.pointer))))
    assert not place.storage.exists(first.run.output.pointer)

    assert "is not signed" in refused_for_its_key(place, first, keys.private)

    place.publish(first)
    assert place.named() == FIRST
