"""Examples are read in place from safetensors shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_trainer.records import FileDigest, TokenShard, TokensIndex
from cloister_trainer.storage import Storage, open_storage
from cloister_trainer.train.examples import Examples, download_tokens
from support.seaweedfs import SeaweedFS


def write_shard(
    folder: Path, name: str, rows: list[list[int]], spans: list[tuple[int, int, int]], repeats: list[int] | None
) -> TokenShard:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "tokens": np.array([token for row in rows for token in row], dtype=np.uint32),
        "offsets": np.cumsum([0, *map(len, rows)]).astype(np.int64),
        "labelSpans": np.array(spans, dtype=np.int32).reshape(-1, 3),
    }
    if repeats is not None:
        tensors["repeats"] = np.array(repeats, dtype=np.uint8)
    path = folder / name
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return TokenShard(
        file=FileDigest(name=name, size=path.stat().st_size, sha256=digest),
        examples=len(rows),
        tokens=sum(map(len, rows)),
        trained_tokens=sum(end - max(start, 1) for _, start, end in spans),
    )


@pytest.fixture
def shards(tmp_path: Path) -> list[TokenShard]:
    return [
        write_shard(tmp_path, "train-00000.safetensors", [[5, 6, 7], [8, 9]], [(0, 1, 3), (1, 0, 2)], [1, 0]),
        write_shard(tmp_path, "train-00001.safetensors", [[1, 2, 3, 4, 5]], [(0, 1, 2), (0, 3, 5)], [2]),
    ]


def test_examples_are_numbered_across_shards(tmp_path: Path, shards: list[TokenShard]) -> None:
    examples = Examples(tmp_path, shards)
    assert len(examples) == 3
    assert [examples.tokens(i).tolist() for i in range(3)] == [[5, 6, 7], [8, 9], [1, 2, 3, 4, 5]]
    assert examples.lengths.tolist() == [3, 2, 5]
    assert isinstance(examples.tokens(0), np.memmap)


def test_label_spans_mark_trained_tokens_and_never_the_first(tmp_path: Path, shards: list[TokenShard]) -> None:
    examples = Examples(tmp_path, shards)
    masks = [examples.label_mask(i).astype(int).tolist() for i in range(3)]
    assert masks == [[0, 1, 1], [0, 1], [0, 1, 0, 1, 1]]
    assert examples.trained.tolist() == [2, 1, 3] == [sum(mask) for mask in masks]


def test_an_epoch_repeats_examples_as_the_shard_says(tmp_path: Path, shards: list[TokenShard]) -> None:
    assert Examples(tmp_path, shards).epoch_ids.tolist() == [0, 2, 2]


def test_a_shard_without_repeats_holds_each_example_once(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "validation-00000.safetensors", [[1, 2], [3, 4]], [(1, 1, 2)], None)
    examples = Examples(tmp_path, [shard])
    assert examples.epoch_ids.tolist() == [0, 1]
    assert examples.trained.tolist() == [0, 1]


def test_no_shards_hold_no_examples(tmp_path: Path) -> None:
    examples = Examples(tmp_path, [])
    assert len(examples) == 0
    with pytest.raises(IndexError):
        examples.tokens(0)


def test_a_shard_that_differs_from_its_index_is_refused(tmp_path: Path, shards: list[TokenShard]) -> None:
    with pytest.raises(CloisterError, match=r"train-00000.safetensors holds 2 examples .* index says 7") as refused:
        Examples(tmp_path, [shards[0].model_copy(update={"examples": 7})])
    assert refused.value.reason is FailureReason.INTERNAL


def index_of(shards: list[TokenShard]) -> TokensIndex:
    return TokensIndex(
        digest="0" * 64,
        train=shards,
        validation=[],
        epoch_examples=3,
        epoch_tokens=10,
        epoch_trained_tokens=6,
        validation_examples=0,
        longest=5,
        stop_token_id=None,
        pad_token_id=0,
    )


@pytest.fixture
def storage(seaweedfs: SeaweedFS) -> Storage:
    return open_storage(environ=seaweedfs.environment())


@pytest.fixture
def tokens_uri(tmp_path: Path, shards: list[TokenShard], storage: Storage, bucket: str) -> str:
    uri = f"s3://{bucket}/tokens"
    for shard in shards:
        storage.upload(tmp_path / shard.file.name, join(uri, shard.file.name))
    return uri


def test_shards_are_downloaded_once(
    tmp_path: Path, shards: list[TokenShard], storage: Storage, tokens_uri: str
) -> None:
    folder = download_tokens(storage, tokens_uri, index_of(shards), tmp_path / "local")
    assert Examples(folder, shards).tokens(2).tolist() == [1, 2, 3, 4, 5]
    storage.delete_prefix(tokens_uri)
    assert download_tokens(storage, tokens_uri, index_of(shards), tmp_path / "local") == folder


def test_a_shard_that_was_changed_in_the_store_is_refused(
    tmp_path: Path, shards: list[TokenShard], storage: Storage, tokens_uri: str
) -> None:
    storage.write(join(tokens_uri, shards[1].file.name), b"something else")
    with pytest.raises(CloisterError, match=r"train-00001.safetensors has sha256 .* changed after prepare"):
        download_tokens(storage, tokens_uri, index_of(shards), tmp_path / "local")
    assert not (tmp_path / "local" / "complete").exists()


def test_local_shards_are_read_where_they_are(tmp_path: Path, shards: list[TokenShard]) -> None:
    storage = open_storage(environ={})
    assert download_tokens(storage, tmp_path.as_uri(), index_of(shards), tmp_path / "unused") == tmp_path
