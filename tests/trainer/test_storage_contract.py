"""What every store that Cloister writes to does in the same way."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister_trainer.storage import AlreadyExists, Changed, MissingObject, Storage, open_storage

LARGE = bytes(range(256)) * 4096 * 40  # 40 MiB: several parts


@dataclass
class Place:
    """A storage and an empty prefix in it."""

    storage: Storage
    uri: str


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The same tests run against S3 and against files."""
    if request.param == "file":
        return Place(open_storage(environ={}), f"file://{tmp_path}/store")
    return Place(request.getfixturevalue("s3_storage"), f"{request.getfixturevalue('s3_uri')}/store")


def test_what_was_written_is_read(place: Place) -> None:
    place.storage.write(f"{place.uri}/a/b.txt", b"hello")
    assert place.storage.read(f"{place.uri}/a/b.txt") == b"hello"
    assert place.storage.exists(f"{place.uri}/a/b.txt")


def test_an_empty_object_is_an_object(place: Place) -> None:
    place.storage.write(f"{place.uri}/empty", b"")
    assert place.storage.read(f"{place.uri}/empty") == b""
    assert place.storage.head(f"{place.uri}/empty").size == 0


def test_writing_again_replaces_and_changes_the_etag(place: Place) -> None:
    first = place.storage.write(f"{place.uri}/x", b"1")
    second = place.storage.write(f"{place.uri}/x", b"2")
    assert place.storage.read(f"{place.uri}/x") == b"2"
    assert first != second == place.storage.head(f"{place.uri}/x").etag


def test_a_prefix_lists_all_below_it_sorted_by_name(place: Place) -> None:
    for name in ("b", "a/2", "a/10", "a-1", "c/d/e"):
        place.storage.write(f"{place.uri}/{name}", b"12345")
    place.storage.write(f"{place.uri}-beside/x", b"")
    listed = place.storage.list(place.uri)
    assert [each.name for each in listed] == ["a-1", "a/10", "a/2", "b", "c/d/e"]
    assert [each.uri for each in listed] == [f"{place.uri}/{each.name}" for each in listed]
    assert {each.size for each in listed} == {5}
    assert listed[0].etag == place.storage.head(f"{place.uri}/a-1").etag


def test_one_object_lists_itself_and_nothing_lists_nothing(place: Place) -> None:
    place.storage.write(f"{place.uri}/train.jsonl", b"{}")
    (only,) = place.storage.list(f"{place.uri}/train.jsonl")
    assert (only.name, only.uri) == ("train.jsonl", f"{place.uri}/train.jsonl")
    assert place.storage.list(f"{place.uri}/train") == []
    assert place.storage.list(f"{place.uri}/other") == []


def test_a_prefix_is_not_an_object(place: Place) -> None:
    place.storage.write(f"{place.uri}/folder/x", b"")
    assert not place.storage.exists(f"{place.uri}/folder")
    with pytest.raises(MissingObject, match=f"{place.uri}/folder"):
        place.storage.head(f"{place.uri}/folder")


@pytest.mark.parametrize(("start", "length", "expected"), [(0, 3, b"012"), (7, 10, b"789"), (10, 5, b""), (3, 0, b"")])
def test_a_range_ends_with_the_object(place: Place, start: int, length: int, expected: bytes) -> None:
    place.storage.write(f"{place.uri}/digits", b"0123456789")
    assert place.storage.read_range(f"{place.uri}/digits", start, length) == expected


def test_a_stream_can_be_sought(place: Place) -> None:
    place.storage.write(f"{place.uri}/large", LARGE)
    with place.storage.open(f"{place.uri}/large") as stream:
        assert stream.read(1000) == LARGE[:1000]
        assert stream.seek(-10, 2) == len(LARGE) - 10
        assert stream.read() == LARGE[-10:]
        stream.seek(30_000_001)
        assert stream.read(70_000) == LARGE[30_000_001:30_070_001]
    with place.storage.open(f"{place.uri}/large", start=1_000_000, length=100) as stream:
        assert (stream.seek(90), stream.read()) == (90, LARGE[1_000_090:1_000_100])


def test_a_stream_of_lines(place: Place) -> None:
    place.storage.write(f"{place.uri}/lines", b"a\nb\nc")
    with place.storage.open(f"{place.uri}/lines") as stream:
        assert list(stream) == [b"a\n", b"b\n", b"c"]


def test_a_stream_of_another_version_is_refused(place: Place) -> None:
    old = place.storage.write(f"{place.uri}/x", b"1")
    place.storage.write(f"{place.uri}/x", b"2")
    with pytest.raises(Changed, match=f"{place.uri}/x"):
        place.storage.open(f"{place.uri}/x", etag=old)


def test_create_writes_once(place: Place) -> None:
    etag = place.storage.create(f"{place.uri}/pointer", b"mine")
    with pytest.raises(AlreadyExists, match=f"{place.uri}/pointer"):
        place.storage.create(f"{place.uri}/pointer", b"yours")
    assert place.storage.read(f"{place.uri}/pointer") == b"mine"
    assert place.storage.head(f"{place.uri}/pointer").etag == etag


def test_replace_needs_the_current_etag(place: Place) -> None:
    first = place.storage.create(f"{place.uri}/pointer", b"1")
    second = place.storage.replace(f"{place.uri}/pointer", b"2", first)
    with pytest.raises(Changed, match=f"{place.uri}/pointer"):
        place.storage.replace(f"{place.uri}/pointer", b"3", first)
    assert place.storage.read(f"{place.uri}/pointer") == b"2"
    third = place.storage.replace(f"{place.uri}/pointer", b"3", second)
    assert third == place.storage.head(f"{place.uri}/pointer").etag


def test_replacing_what_is_not_there_is_a_change(place: Place) -> None:
    with pytest.raises(Changed):
        place.storage.replace(f"{place.uri}/pointer", b"1", "0" * 32)
    assert not place.storage.exists(f"{place.uri}/pointer")


def test_one_of_many_creators_wins(place: Place) -> None:
    def create(number: int) -> int | None:
        try:
            place.storage.create(f"{place.uri}/pointer", str(number).encode())
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [each for each in pool.map(create, range(8)) if each is not None]
    assert [int(place.storage.read(f"{place.uri}/pointer"))] == winners


def test_no_increment_is_lost_between_replacers(place: Place) -> None:
    uri = f"{place.uri}/counter"
    increments = 200 if uri.startswith("file") else 12
    place.storage.create(uri, b"0")

    def increment(_: int) -> None:
        while True:
            etag = place.storage.head(uri).etag
            value = int(place.storage.read(uri))
            try:
                place.storage.replace(uri, str(value + 1).encode(), etag)
            except Changed:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(increments)))
    assert int(place.storage.read(uri)) == increments


def test_the_conditional_put_check_passes_and_leaves_nothing(place: Place) -> None:
    place.storage.check_conditional_put(place.uri)
    assert place.storage.delete_prefix(place.uri) == 0


def test_large_files_go_up_and_come_down(place: Place, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(LARGE)
    place.storage.upload(tmp_path / "source", f"{place.uri}/large")
    place.storage.download(f"{place.uri}/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert place.storage.head(f"{place.uri}/large").size == len(LARGE)


def test_deleting_what_is_not_there_is_fine(place: Place) -> None:
    place.storage.write(f"{place.uri}/x", b"")
    place.storage.delete(f"{place.uri}/x")
    place.storage.delete(f"{place.uri}/x")
    assert not place.storage.exists(f"{place.uri}/x")


def test_a_prefix_is_deleted_without_its_neighbours(place: Place) -> None:
    for name in ("run/a", "run/b/c", "run-2/a"):
        place.storage.write(f"{place.uri}/{name}", b"")
    assert place.storage.delete_prefix(f"{place.uri}/run") == 2
    assert [each.name for each in place.storage.list(place.uri)] == ["run-2/a"]
    assert place.storage.delete_prefix(f"{place.uri}/run") == 0


def test_our_temporary_objects_are_not_listed(place: Place) -> None:
    place.storage.write(f"{place.uri}/.cloister-probe-1", b"")
    place.storage.write(f"{place.uri}/.gitattributes", b"")
    assert [each.name for each in place.storage.list(place.uri)] == [".gitattributes"]


@pytest.mark.parametrize("operation", ["read", "head", "open"])
def test_a_missing_object_is_named(place: Place, operation: str) -> None:
    place.storage.write(f"{place.uri}/there", b"")
    with pytest.raises(MissingObject, match=f"{place.uri}/not-there"):
        getattr(place.storage, operation)(f"{place.uri}/not-there")


def test_downloading_a_missing_object_leaves_no_file(place: Place, tmp_path: Path) -> None:
    place.storage.write(f"{place.uri}/there", b"")
    with pytest.raises(MissingObject, match=f"{place.uri}/not-there"):
        place.storage.download(f"{place.uri}/not-there", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_name_with_spaces_and_other_letters(place: Place) -> None:
    place.storage.write(f"{place.uri}/größe & maß +1.txt", b"x")
    (only,) = place.storage.list(place.uri)
    assert only.name == "größe & maß +1.txt"
    assert place.storage.read(only.uri) == b"x"


def test_an_error_survives_the_way_from_another_process(place: Place) -> None:
    place.storage.write(f"{place.uri}/x", b"")
    with pytest.raises(AlreadyExists) as raised:
        place.storage.create(f"{place.uri}/x", b"")
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), copy.message, copy.reason) == (AlreadyExists, raised.value.message, raised.value.reason)
