"""Every way in which a file system says no is another error, with the path and what to do."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from cloister_api.reasons import FailureReason
from cloister_trainer.storage import (
    AccessDenied,
    Full,
    InvalidUri,
    MissingBucket,
    MissingObject,
    Storage,
    Unsupported,
    open_storage,
)
from cloister_trainer.storage.os_errors import translate_os_error
from support.disk import largest_file
from support.storage_operations import WRITES, failure


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    storage = open_storage(environ={})
    large = b"x" * 4_000_000
    (tmp_path / "large").write_bytes(large)
    for fill in (
        lambda: storage.write(f"file://{small_disk}/a", large),
        lambda: storage.create(f"file://{small_disk}/a", large),
        lambda: storage.upload(tmp_path / "large", f"file://{small_disk}/a"),
        lambda: storage.download(f"file://{tmp_path}/large", small_disk / "a"),
    ):
        with pytest.raises(Full) as full:
            fill()
        assert full.value.reason is FailureReason.LOCAL_DISK_FULL
        assert f"{small_disk}/a" in full.value.message
    assert list(small_disk.iterdir()) == []


def test_a_download_to_a_full_disk(s3_storage: Storage, s3_uri: str, small_disk: Path) -> None:
    s3_storage.write(f"{s3_uri}/large", b"x" * 4_000_000)
    with pytest.raises(Full, match=f"{small_disk}/copy") as full:
        s3_storage.download(f"{s3_uri}/large", small_disk / "copy")
    assert full.value.reason is FailureReason.LOCAL_DISK_FULL
    assert list(small_disk.iterdir()) == []


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    with largest_file(1_000_000), pytest.raises(Full, match=f"file://{tmp_path}/a") as full:
        open_storage(environ={}).write(f"file://{tmp_path}/a", b"x" * 4_000_000)
    assert full.value.reason is FailureReason.LOCAL_DISK_FULL
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_read_and_never_written(tmp_path: Path) -> None:
    (tmp_path / "weights" / "llama").mkdir(parents=True)
    (tmp_path / "weights" / "llama" / "config.json").write_bytes(b"{}")
    storage = open_storage(environ={"CLOISTER_PVC_ROOT": str(tmp_path)})
    assert [each.uri for each in storage.list("pvc://weights/llama")] == ["pvc://weights/llama/config.json"]
    assert storage.read("pvc://weights/llama/config.json") == b"{}"
    for operation in WRITES:
        error = failure(operation, storage, "pvc://weights/llama/config.json", tmp_path)
        assert error.reason is FailureReason.SPEC_INVALID
        assert "pvc:// is read-only" in error.message


def test_a_claim_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingBucket, match="pvc://weights/llama") as missing:
        open_storage(environ={"CLOISTER_PVC_ROOT": str(tmp_path)}).list("pvc://weights/llama")
    assert missing.value.reason is FailureReason.VOLUME_NOT_FOUND


def test_a_link_out_of_a_claim_is_refused_and_one_within_is_followed(tmp_path: Path) -> None:
    claim = tmp_path / "weights"
    (claim / "blobs").mkdir(parents=True)
    (claim / "blobs" / "123").write_bytes(b"{}")
    (claim / "config.json").symlink_to("blobs/123")
    (claim / "environ").symlink_to("/proc/self/environ")
    storage = open_storage(environ={"CLOISTER_PVC_ROOT": str(tmp_path)})
    assert storage.read("pvc://weights/config.json") == b"{}"
    with pytest.raises(AccessDenied, match="link out of its claim"):
        storage.read("pvc://weights/environ")


def test_what_the_system_forbids_is_denied(tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="file:///sys/x"):
        open_storage(environ={}).write("file:///sys/x", b"")
    with pytest.raises(MissingObject, match=f"file://{tmp_path}/a/b"):
        (tmp_path / "a").write_bytes(b"")
        open_storage(environ={}).read(f"file://{tmp_path}/a/b")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_unsupported(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(Unsupported, match="does not offer hard linking") as refused:
        open_storage(environ={}).check_conditional_put(f"file://{tmp_path}/out")
    assert refused.value.reason is FailureReason.STORAGE_UNSUPPORTED
    assert f"file://{tmp_path}/out" in refused.value.message
    assert list((tmp_path / "out").iterdir()) == []


def test_a_machine_that_has_run_out_of_something_may_try_again(tmp_path: Path) -> None:
    storage = open_storage(environ={})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "a").write_bytes(b"x")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        error = failure("read", storage, f"file://{tmp_path}/a", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "Too many open files" in error.message and "correct the URI" not in error.message


@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOMEM, errno.EBUSY, errno.ENOLCK])
def test_what_passes_is_no_mistake_of_the_uri(number: int) -> None:
    error = translate_os_error(OSError(number, ""), "file:///a", "writing")
    assert error.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "correct the URI" not in error.message


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"")
    with pytest.raises(InvalidUri, match=r"caf.*udce9.*rename the file"):
        open_storage(environ={}).list(f"file://{tmp_path}")
