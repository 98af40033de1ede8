"""ifExists and races: what happens when output.uri holds an adapter already, or gets one meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.layout import OutputLayout
from cloister_api.reasons import FailureReason
from cloister_api.reuse import reuse_key
from cloister_trainer.publish.check import check_output
from cloister_trainer.publish.pointer import LostRaceError, Pointer, move_pointer, read_pointer
from cloister_trainer.storage import Storage, open_storage
from support.publishing import FIRST, SECOND, OvertakenStorage, Place, moves_pointer
from support.staged_run import StagedRun


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage) -> Place:
    place = Place(tmp_path, tiny_llama, tiny_adapter, storage)
    place.publish(place.staged(FIRST))
    return place


def key_of(staged: StagedRun) -> str:
    return reuse_key(staged.run.spec, staged.plan.model.fingerprint, staged.plan.data.digest)


def refusal(place: Place, staged: StagedRun) -> CloisterError:
    with pytest.raises(CloisterError) as refused:
        place.publish(staged)
    assert refused.value.reason is FailureReason.OUTPUT_EXISTS
    assert place.named() == FIRST
    return refused.value


def test_fail_names_the_run_that_was_there(place: Place) -> None:
    second = place.staged(SECOND)

    assert FIRST in refusal(place, second).message
    assert place.storage.list(second.run.layout.tokens), "a refused run keeps its data"
    with pytest.raises(CloisterError, match=FIRST):
        check_output(second.run, place.storage, None, None)


def test_reuse_takes_an_equal_adapter(place: Place) -> None:
    second = place.staged(SECOND, "Reuse")

    status = place.publish(second)

    assert status.uri.endswith(FIRST)
    assert place.named() == FIRST
    assert place.storage.list(second.run.output.folder) == []
    found = check_output(second.run, place.storage, key_of(second), None)
    assert found is not None
    assert (found.uid, found.output) == (FIRST, status)


def test_reuse_is_undecided_until_model_and_data_are_known(place: Place) -> None:
    assert check_output(place.staged(SECOND, "Reuse").run, place.storage, None, None) is None


def test_reuse_names_what_differs(place: Place) -> None:
    second = place.staged(SECOND, "Reuse", training={"learningRate": 1e-4}, lora={"rank": 4, "alpha": 16})

    message = refusal(place, second).message

    assert "lora.alpha, training.learningRate" in message
    assert FIRST in message


def test_reuse_notices_other_data_behind_the_same_settings(place: Place) -> None:
    second = place.staged(SECOND, "Reuse")
    data = second.plan.data.model_copy(update={"digest": "0" * 64})
    second.plan = second.plan.model_copy(update={"data": data})

    assert "the contents of the model or of the dataset" in refusal(place, second).message


def test_reuse_notices_another_initial_adapter_behind_the_same_uri(place: Place) -> None:
    second = place.staged(SECOND, "Reuse")
    second.plan = second.plan.model_copy(update={"initial_adapter": "0" * 64})

    assert "or of the adapter in lora.initFrom" in refusal(place, second).message


def test_replace_moves_the_pointer_and_keeps_the_old_folder(place: Place) -> None:
    place.publish(place.staged(SECOND, "Replace"))

    assert place.named() == SECOND
    assert (place.root / "out/contracts" / FIRST / "manifest.json").exists()


def test_a_pointer_of_somebody_else_is_not_touched(place: Place) -> None:
    pointer = place.root / "out/contracts/current.json"
    pointer.write_text('{"latest": "v3"}')
    staged = place.staged(SECOND, "Replace")

    with pytest.raises(CloisterError, match="was not written by Cloister") as refused:
        place.publish(staged)

    assert refused.value.reason is FailureReason.OUTPUT_EXISTS
    assert pointer.read_text() == '{"latest": "v3"}'


def test_a_changed_published_folder_is_not_reused(place: Place) -> None:
    manifest = place.root / "out/contracts" / FIRST / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 42', b'"seed": 43'))

    with pytest.raises(CloisterError, match="was changed") as refused:
        place.publish(place.staged(SECOND, "Reuse"))

    assert refused.value.reason is FailureReason.ADAPTER_INVALID


@pytest.mark.parametrize("if_exists", ["Fail", "Replace"])
def test_whoever_was_overtaken_is_refused_and_keeps_its_data(
    if_exists: str, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    place = Place(tmp_path, tiny_llama, tiny_adapter, storage)
    if if_exists == "Replace":
        place.publish(place.staged("cccccccc-2222-3333-4444-555555555555"))
    slow, quick = place.staged(FIRST, if_exists), place.staged(SECOND, if_exists)

    with pytest.raises(CloisterError, match=SECOND) as refused:
        place.publish(slow, OvertakenStorage(lambda: place.publish(quick), moves_pointer))

    assert refused.value.reason is FailureReason.OUTPUT_EXISTS
    assert place.named() == SECOND
    assert storage.list(slow.run.layout.tokens)


def test_whoever_was_overtaken_may_reuse_an_equal_adapter(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    place = Place(tmp_path, tiny_llama, tiny_adapter, storage)
    slow, quick = place.staged(FIRST, "Reuse"), place.staged(SECOND, "Reuse")

    status = place.publish(slow, OvertakenStorage(lambda: place.publish(quick), moves_pointer))

    assert status.uri.endswith(SECOND)
    assert place.named() == SECOND


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_of_many_at_once_one_moves_the_pointer(
    scheme: str, replacing: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage, prefix = open_storage(environ={}), tmp_path.as_uri()
    if scheme == "s3":
        storage = open_storage(environ=request.getfixturevalue("seaweedfs").environment())
        prefix = f"s3://{request.getfixturevalue('bucket')}"
    output = OutputLayout(f"{prefix}/out", FIRST)
    pointers = [Pointer(uid=str(number), folder=str(number), manifest_digest="0" * 64) for number in range(8)]
    if replacing:
        move_pointer(storage, output, pointers[0].model_copy(update={"uid": "old"}), None)
    before = read_pointer(storage, output)
    start = threading.Barrier(len(pointers))

    def wins(pointer: Pointer) -> bool:
        start.wait(timeout=60)
        try:
            move_pointer(storage, output, pointer, before)
        except LostRaceError:
            return False
        return True

    with ThreadPoolExecutor(len(pointers)) as pool:
        won = list(pool.map(wins, pointers))

    assert won.count(True) == 1
    now = read_pointer(storage, output)
    assert now is not None
    assert now.pointer == pointers[won.index(True)]
