"""A network that breaks connections and loses answers changes nothing but the time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister_trainer.storage import AlreadyExists, Changed, Storage, Unreachable, Unsupported, open_storage, s3_stream
from support.s3_proxy import Faults, S3Proxy
from support.seaweedfs import SeaweedFS

DATA = os.urandom(3_000_000)


@pytest.fixture
def uri(s3_storage: Storage, s3_uri: str) -> str:
    s3_storage.write(f"{s3_uri}/data", DATA)
    return f"{s3_uri}/data"


def test_a_broken_read_goes_on_where_it_broke(seaweedfs: SeaweedFS, uri: str) -> None:
    with S3Proxy(seaweedfs, Faults(cut_after=700_000, cuts=4)) as proxy:
        assert open_storage(environ=proxy.environment()).read(uri) == DATA
        assert proxy.faults.cuts == 0
        assert proxy.bytes_sent == len(DATA), "no byte came twice"


def test_a_broken_range_goes_on_where_it_broke(seaweedfs: SeaweedFS, uri: str) -> None:
    with S3Proxy(seaweedfs, Faults(cut_after=50_000, cuts=2)) as proxy:
        read = open_storage(environ=proxy.environment()).read_range(uri, 1_000_000, 200_000)
    assert read == DATA[1_000_000:1_200_000]


def test_a_broken_download_is_complete_in_the_end(seaweedfs: SeaweedFS, uri: str, tmp_path: Path) -> None:
    with S3Proxy(seaweedfs, Faults(cut_after=700_000, cuts=2)) as proxy:
        open_storage(environ=proxy.environment()).download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def test_a_connection_that_only_breaks_is_unreachable(
    seaweedfs: SeaweedFS, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_stream, "MAX_WAIT_S", 0.01)
    with S3Proxy(seaweedfs, Faults(cut_after=0, cuts=1000)) as proxy:
        storage = open_storage(environ=proxy.environment())
        with pytest.raises(Unreachable, match=uri):
            storage.read(uri)
        with pytest.raises(Unreachable, match=uri):
            storage.download(uri, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_stream_never_mixes_two_versions(seaweedfs: SeaweedFS, uri: str) -> None:
    with S3Proxy(seaweedfs, Faults(cut_after=700_000, cuts=1)) as proxy:
        storage = open_storage(environ=proxy.environment())
        with storage.open(uri) as stream:
            assert stream.read(100) == DATA[:100]
            storage.write(uri, b"y" * len(DATA))
            with pytest.raises(Changed, match=uri):
                stream.read()


def test_a_create_whose_answer_was_lost_is_still_ours(seaweedfs: SeaweedFS, s3_uri: str) -> None:
    with S3Proxy(seaweedfs, Faults(lose_answers=1)) as proxy:
        storage = open_storage(environ=proxy.environment())
        etag = storage.create(f"{s3_uri}/pointer", b"mine")
        assert proxy.faults.lose_answers == 0
        assert storage.head(f"{s3_uri}/pointer").etag == etag


def test_a_replace_whose_answer_was_lost_is_still_ours(seaweedfs: SeaweedFS, s3_uri: str) -> None:
    with S3Proxy(seaweedfs) as proxy:
        storage = open_storage(environ=proxy.environment())
        first = storage.create(f"{s3_uri}/pointer", b"1")
        proxy.faults.lose_answers = 1
        second = storage.replace(f"{s3_uri}/pointer", b"2", first)
        assert storage.head(f"{s3_uri}/pointer").etag == second


def test_a_lost_answer_hides_nobody_elses_write(seaweedfs: SeaweedFS, s3_storage: Storage, s3_uri: str) -> None:
    s3_storage.create(f"{s3_uri}/pointer", b"theirs")
    with S3Proxy(seaweedfs, Faults(lose_answers=1)) as proxy, pytest.raises(AlreadyExists):
        open_storage(environ=proxy.environment()).create(f"{s3_uri}/pointer", b"mine")


def test_a_store_that_ignores_ranges_is_refused_and_never_read_wrongly(seaweedfs: SeaweedFS, uri: str) -> None:
    with S3Proxy(seaweedfs, Faults(ignore_ranges=True)) as proxy:
        storage = open_storage(environ=proxy.environment())
        assert storage.read(uri) == DATA
        for start in (0, 1_000_000):
            with pytest.raises(Unsupported, match=f"ignores ranges .*{uri}"):
                storage.read_range(uri, start, 1000)


def test_a_store_that_ignores_ranges_cannot_go_on_after_a_break(seaweedfs: SeaweedFS, uri: str) -> None:
    faults = Faults(ignore_ranges=True, cut_after=700_000, cuts=1)
    with S3Proxy(seaweedfs, faults) as proxy, pytest.raises(Unsupported, match=uri):
        open_storage(environ=proxy.environment()).read(uri)
