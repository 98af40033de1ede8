"""The base model comes to a node once, whole, verified, and goes on after a kill."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister_api.reasons import FailureReason
from cloister_trainer.records import FileDigest, ModelRecord
from cloister_trainer.storage import (
    Changed,
    FetchedModel,
    Full,
    InvalidUri,
    MissingObject,
    Storage,
    base_digest,
    completion,
    fetch_model,
    open_storage,
    weights,
)
from support.models import SMALL_FILES, SMALL_PART_BYTES, record, start_fetching, store_model
from support.s3_proxy import Faults, S3Proxy
from support.seaweedfs import SeaweedFS

MIB = 1024 * 1024
SIZES = [12 * MIB + 7, 5 * MIB, 0, 5]
HOLD_AFTER = 12 * MIB


@pytest.fixture
def model(s3_storage: Storage, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRecord:
    """A model of several parts of 1 MiB in S3."""
    monkeypatch.setattr(weights, "PART_BYTES", SMALL_PART_BYTES)
    return store_model(s3_storage, f"{s3_uri}/llama", SIZES, tmp_path)


def assert_is_the_model(fetched: FetchedModel, storage: Storage, model: ModelRecord) -> None:
    """Every byte is the store's, every digest is the bytes', and nothing else is there."""
    expected = {}
    for file in model.weight_files:
        data = storage.read(f"{model.uri}/{file.name}")
        assert (fetched.folder / file.name).read_bytes() == data
        expected[file.name] = FileDigest(name=file.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert fetched.weight_files == [expected[name] for name in sorted(expected)]
    assert fetched.base_digest == base_digest(fetched.weight_files)
    for name, content in SMALL_FILES.items():
        assert (fetched.folder / name).read_bytes() == content
    visible = {path.name for path in fetched.folder.iterdir() if not path.name.startswith(".")}
    assert visible == {*expected, *SMALL_FILES}


def test_a_model_is_fetched_whole_with_its_digests(s3_storage: Storage, model: ModelRecord, tmp_path: Path) -> None:
    heard: list[int] = []
    fetched = fetch_model(s3_storage, model, tmp_path / "cache", heard.append)
    assert fetched.folder == tmp_path / "cache" / model.fingerprint
    assert_is_the_model(fetched, s3_storage, model)
    assert sum(heard) == sum(SIZES)


def test_the_base_digest_is_over_the_names_and_digests_in_order() -> None:
    files = [FileDigest(name="b", size=1, sha256="22"), FileDigest(name="a", size=1, sha256="11")]
    assert base_digest(files) == hashlib.sha256(b"a 11\nb 22\n").hexdigest()


def test_a_complete_folder_is_used_without_a_request(model: ModelRecord, s3_storage: Storage, tmp_path: Path) -> None:
    first = fetch_model(s3_storage, model, tmp_path / "cache")
    no_store = open_storage(environ={"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"})
    heard: list[int] = []
    assert fetch_model(no_store, model, tmp_path / "cache", heard.append) == first
    assert sum(heard) == sum(SIZES)


@pytest.mark.parametrize("name", ["model-00001.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"?" + data[1:]], ids=["shorter", "other"])
def test_a_damaged_complete_folder_is_fetched_again(
    s3_storage: Storage, model: ModelRecord, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    fetched = fetch_model(s3_storage, model, tmp_path / "cache")
    (fetched.folder / name).write_bytes(damage((fetched.folder / name).read_bytes()))
    assert_is_the_model(fetch_model(s3_storage, model, tmp_path / "cache"), s3_storage, model)


def test_after_another_boot_every_file_is_hashed_again(
    s3_storage: Storage, model: ModelRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch_model(s3_storage, model, tmp_path / "cache")
    weight = first.folder / "model-00001.safetensors"
    no_store = open_storage(environ={"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"})

    def boot(number: str) -> None:
        (tmp_path / "boot_id").write_text(number)
        monkeypatch.setattr(completion, "BOOT_ID_FILE", tmp_path / "boot_id")

    boot("second")
    assert fetch_model(no_store, model, tmp_path / "cache") == first
    _flip_a_bit(weight)
    assert fetch_model(no_store, model, tmp_path / "cache") == first, (
        "seen in this boot, it is trusted by size and time"
    )
    boot("third")
    assert_is_the_model(fetch_model(s3_storage, model, tmp_path / "cache"), s3_storage, model)


def _flip_a_bit(path: Path) -> None:
    """As a power failure leaves it: other content, the same size and time."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(SMALL_PART_BYTES + 5)
        byte = file.read(1)[0]
        file.seek(SMALL_PART_BYTES + 5)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_killed_midway_it_goes_on_with_what_it_had(
    seaweedfs: SeaweedFS, s3_storage: Storage, model: ModelRecord, tmp_path: Path
) -> None:
    with S3Proxy(seaweedfs, Faults(hold_after=HOLD_AFTER)) as proxy:
        proven = _kill_midway(proxy, model, tmp_path / "cache")
    assert not (tmp_path / "cache" / model.fingerprint).exists()
    with S3Proxy(seaweedfs) as proxy:
        fetched = fetch_model(open_storage(environ=proxy.environment()), model, tmp_path / "cache")
        assert proxy.bytes_sent == sum(SIZES) - proven + sum(map(len, SMALL_FILES.values()))
    assert_is_the_model(fetched, s3_storage, model)


def test_what_was_damaged_after_a_kill_is_fetched_again(
    seaweedfs: SeaweedFS, s3_storage: Storage, model: ModelRecord, tmp_path: Path
) -> None:
    with S3Proxy(seaweedfs, Faults(hold_after=HOLD_AFTER)) as proxy:
        _kill_midway(proxy, model, tmp_path / "cache")
    kept = tmp_path / "cache" / f".{model.fingerprint}.partial" / "model-00001.safetensors"
    _flip_a_bit(kept)
    assert_is_the_model(fetch_model(s3_storage, model, tmp_path / "cache"), s3_storage, model)


def _kill_midway(proxy: S3Proxy, model: ModelRecord, cache: Path) -> int:
    """Start a fetch, wait until it has proven some parts, and kill it; the proven bytes."""
    journal = cache / f".{model.fingerprint}.journal"
    fetching = start_fetching(model, cache, proxy.environment())
    try:
        proxy.wait_for_bytes(HOLD_AFTER)
        _wait_until(lambda: journal.read_text().count("\n") > 3)
    finally:
        fetching.kill()
        fetching.communicate()
    ends: dict[str, int] = {}
    for name, end, _ in weights.journal_lines(journal):
        ends[name] = max(end, ends.get(name, 0))
    return sum(ends.values())


def _wait_until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_four_processes_together_fetch_once(
    seaweedfs: SeaweedFS, s3_storage: Storage, model: ModelRecord, tmp_path: Path
) -> None:
    with S3Proxy(seaweedfs) as proxy:
        fetching = [start_fetching(model, tmp_path / "cache", proxy.environment()) for _ in range(4)]
        said = {each.communicate()[0].strip() for each in fetching}
        assert proxy.bytes_sent == sum(SIZES) + sum(map(len, SMALL_FILES.values()))
    fetched = fetch_model(s3_storage, model, tmp_path / "cache")
    assert said == {fetched.base_digest}
    assert_is_the_model(fetched, s3_storage, model)


def test_broken_connections_cost_no_part(
    seaweedfs: SeaweedFS, s3_storage: Storage, model: ModelRecord, tmp_path: Path
) -> None:
    with S3Proxy(seaweedfs, Faults(cut_after=300_000, cuts=8)) as proxy:
        fetched = fetch_model(open_storage(environ=proxy.environment()), model, tmp_path / "cache")
        assert proxy.faults.cuts == 0
        assert proxy.bytes_sent == sum(SIZES) + sum(map(len, SMALL_FILES.values()))
    assert_is_the_model(fetched, s3_storage, model)


def test_a_small_file_changed_on_its_way_is_noticed(seaweedfs: SeaweedFS, model: ModelRecord, tmp_path: Path) -> None:
    def flip(path: str, chunk: bytes) -> bytes:
        return b"?" + chunk[1:] if path.endswith("tokenizer.json") else chunk

    with S3Proxy(seaweedfs, Faults(change=flip)) as proxy, pytest.raises(Changed) as changed:
        fetch_model(open_storage(environ=proxy.environment()), model, tmp_path / "cache")
    assert changed.value.reason is FailureReason.MODEL_NOT_FOUND
    assert f"{model.uri}/tokenizer.json is not the file that prepare read" in changed.value.message
    assert not (tmp_path / "cache" / model.fingerprint).exists()


def test_weights_replaced_since_prepare_are_noticed(s3_storage: Storage, model: ModelRecord, tmp_path: Path) -> None:
    s3_storage.write(f"{model.uri}/model-00002.safetensors", b"x" * SIZES[1])
    with pytest.raises(Changed, match=r"model-00002\.safetensors was changed") as changed:
        fetch_model(s3_storage, model, tmp_path / "cache")
    assert changed.value.reason is FailureReason.MODEL_NOT_FOUND
    assert not (tmp_path / "cache" / model.fingerprint).exists()


def test_weights_gone_since_prepare_are_named(s3_storage: Storage, model: ModelRecord, tmp_path: Path) -> None:
    s3_storage.delete(f"{model.uri}/model-00002.safetensors")
    with pytest.raises(MissingObject, match=r"model-00002\.safetensors") as missing:
        fetch_model(s3_storage, model, tmp_path / "cache")
    assert missing.value.reason is FailureReason.MODEL_NOT_FOUND


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "a/../../outside"])
def test_an_index_cannot_write_outside_the_folder(
    s3_storage: Storage, model: ModelRecord, tmp_path: Path, name: str
) -> None:
    lying = model.weight_files[0].model_copy(update={"name": name})
    with pytest.raises(InvalidUri, match="outside"):
        fetch_model(s3_storage, model.model_copy(update={"weight_files": [lying]}), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_too_small_a_disk_is_known_before_the_first_byte(
    s3_storage: Storage, model: ModelRecord, small_disk: Path
) -> None:
    heard: list[int] = []
    with pytest.raises(Full, match=r"need 0\.0 GiB more in .* raise model.cache.size") as full:
        fetch_model(s3_storage, model, small_disk / "cache", heard.append)
    assert full.value.reason is FailureReason.LOCAL_DISK_FULL
    assert heard == []


@pytest.mark.parametrize("scheme", ["file", "pvc"])
def test_a_mounted_model_is_linked_and_hashed_where_it_lies(tmp_path: Path, scheme: str) -> None:
    store_model(open_storage(environ={}), f"file://{tmp_path}/mnt/claim/llama", SIZES, tmp_path)
    uri = f"file://{tmp_path}/mnt/claim/llama" if scheme == "file" else "pvc://claim/llama"
    storage = open_storage(environ={"CLOISTER_PVC_ROOT": str(tmp_path / "mnt")})
    model, heard = record(storage, uri), list[int]()
    fetched = fetch_model(storage, model, tmp_path / "cache", heard.append)
    assert_is_the_model(fetched, storage, model)
    assert sum(heard) == sum(SIZES)
    assert (
        fetched.folder / "model-00001.safetensors"
    ).readlink() == tmp_path / "mnt/claim/llama/model-00001.safetensors"
    assert fetch_model(storage, model, tmp_path / "cache") == fetched


def test_a_mounted_model_that_changed_is_noticed(tmp_path: Path) -> None:
    storage, uri = open_storage(environ={}), f"file://{tmp_path}/llama"
    model = store_model(storage, uri, SIZES, tmp_path)
    fetch_model(storage, model, tmp_path / "cache")
    (tmp_path / "llama" / "model-00002.safetensors").write_bytes(b"x" * SIZES[1])
    with pytest.raises(Changed, match=r"model-00002\.safetensors was changed since prepare read it"):
        fetch_model(storage, model, tmp_path / "cache")
