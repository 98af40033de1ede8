"""Each tensor of a merged file is read back and compared, and merging needs little memory, however large the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.records import FileDigest
from cloister_trainer.train import merged_files
from cloister_trainer.train.checkpoint import digest_of
from cloister_trainer.train.merge import Delta
from cloister_trainer.train.merged_files import write_merged
from support import merging

ADAPTED, KEPT = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"
FILE = "model.safetensors"


def save_base(folder: Path, dtype: torch.dtype = torch.float32, size: float = 1.0) -> FileDigest:
    """A weight that will be changed and one that will not."""
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {ADAPTED: torch.full((12, 8), size, dtype=dtype), KEPT: torch.randn(8).to(dtype)}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return digest_of(folder / FILE)


def merged(base: Path, file: FileDigest, folder: Path, largest: float = 1.0) -> list[FileDigest]:
    delta = Delta(torch.full((2, 8), float(largest)), torch.ones(12, 2), scaling=1.0, experts=1, transposed=False)
    return list(write_merged(base, [file], "llama", {ADAPTED: delta}, folder))


def flip_byte(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def place_of(path: Path, tensor: str) -> int:
    """Where a tensor's last byte lies."""
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return int(8 + length + json.loads(path.read_bytes()[8 : 8 + length])[tensor]["data_offsets"][1] - 1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: flip_byte(path, place_of(path, ADAPTED)), f"tensor {ADAPTED}"),
        (lambda path: flip_byte(path, place_of(path, KEPT)), f"tensor {KEPT}"),
        (lambda path: flip_byte(path, 12), "the header"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "tensor "),
        (lambda path: os.truncate(path, path.stat().st_size + 1), "its length"),
    ],
)
def test_a_file_that_changes_after_it_was_written_is_not_handed_on(
    damage: Callable[[Path], object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_base(tmp_path / "base")
    write = merged_files.write_file

    def written_and_damaged(
        base: Path, file: FileDigest, path: Path, changes: merged_files.Changes
    ) -> list[merged_files.Written]:
        written = write(base, file, path, changes)
        damage(path)
        return written

    monkeypatch.setattr(merged_files, "write_file", written_and_damaged)
    with pytest.raises(CloisterError, match="reads back") as failure:
        merged(tmp_path / "base", file, tmp_path / "merged")
    assert failure.value.reason is FailureReason.ADAPTER_INVALID
    assert FILE in failure.value.message and named in failure.value.message


@pytest.mark.parametrize(
    "damage",
    [lambda path: flip_byte(path, -1), lambda path: os.truncate(path, path.stat().st_size - 40), Path.unlink],
)
def test_a_base_that_is_no_longer_what_was_fetched_is_not_merged(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    file = save_base(tmp_path / "base")
    damage(tmp_path / "base" / FILE)
    with pytest.raises(CloisterError, match="no longer what was fetched") as failure:
        merged(tmp_path / "base", file, tmp_path / "merged")
    assert failure.value.reason is FailureReason.ADAPTER_INVALID
    assert "Restore the model's folder if somebody changed it" in failure.value.message
    assert "or else have the worker's disk checked" in failure.value.message


def test_a_file_is_read_back_from_the_disk_and_not_from_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the kernel can be told: some file systems keep pages all the same, so the calls are looked at."""
    file, done = save_base(tmp_path / "base"), []
    check = merged_files.check_file

    def traced(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def traced_call(descriptor: int, *others: Any) -> Any:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            done.append((name, path, path.stat().st_size, *others))
            return call(descriptor, *others)

        return traced_call

    def checked(path: Path, *others: Any) -> FileDigest:
        done.append(("check", path))
        return check(path, *others)

    monkeypatch.setattr(os, "fsync", traced("fsync", os.fsync))
    monkeypatch.setattr(os, "posix_fadvise", traced("posix_fadvise", os.posix_fadvise))
    monkeypatch.setattr(merged_files, "check_file", checked)
    merged(tmp_path / "base", file, tmp_path / "merged")
    path = tmp_path / "merged" / FILE
    assert done == [
        ("fsync", path, file.size),
        ("posix_fadvise", path, file.size, 0, 0, os.POSIX_FADV_DONTNEED),
        ("check", path),
    ]


def test_a_merged_value_that_its_type_cannot_hold_names_the_tensor(tmp_path: Path) -> None:
    file = save_base(tmp_path / "base", torch.float16, size=65_000)
    with pytest.raises(
        CloisterError, match=f"{ADAPTED} has values that are not finite in its type .float16"
    ) as failure:
        merged(tmp_path / "base", file, tmp_path / "merged", largest=1_000)
    assert failure.value.reason is FailureReason.ADAPTER_INVALID


def test_a_tensor_in_many_pieces_is_merged_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_base(tmp_path / "base")
    (whole,) = merged(tmp_path / "base", file, tmp_path / "whole")
    monkeypatch.setattr(merged_files, "PIECE_BYTES", 5 * 8 * 4)  # rows of 32 bytes, 12 of them
    (pieces,) = merged(tmp_path / "base", file, tmp_path / "pieces")
    assert pieces == whole == digest_of(tmp_path / "pieces" / FILE)
    tensors = load_file(tmp_path / "pieces" / FILE)
    assert torch.equal(tensors[ADAPTED], torch.full((12, 8), 3.0))
    assert torch.equal(tensors[KEPT], load_file(tmp_path / "base" / FILE)[KEPT])


def test_merging_a_model_of_a_gibibyte_in_one_file_takes_a_fraction_of_it(tmp_path: Path) -> None:
    base = merging.save_large(tmp_path / FILE)
    assert base.size > 2**30
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "support.merging", str(tmp_path), base.name, str(base.size), base.sha256],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
    finally:
        (tmp_path / FILE).unlink()
    told = json.loads(ran.stdout)
    assert told["changed"] == [layer < merging.ADAPTED_LAYERS for layer in range(merging.LAYERS)]
    assert told["peakBytes"] - told["bytesBefore"] < 200 * 2**20, told
