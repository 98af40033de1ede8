"""A large file that is merged in a process of its own, which tells how much memory that took.

`python -m support.merging FOLDER NAME SIZE SHA256`, with the file's digest. The peak is VmHWM, which begins with the
program; ru_maxrss begins with what its parent had.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from cloister_trainer.records import FileDigest
from cloister_trainer.train.merge import Delta
from cloister_trainer.train.merged_files import write_merged

LAYERS, ADAPTED_LAYERS = 8, 4
SIDE = 8192
RANK = 16


def name_of(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj.weight"


def save_large(path: Path) -> FileDigest:
    """1 GiB of bfloat16 in one file, without holding it."""
    size = SIDE * SIDE * 2
    entries = {
        name_of(layer): {"dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [layer * size, (layer + 1) * size]}
        for layer in range(LAYERS)
    }
    header = json.dumps(entries).encode()
    torch.manual_seed(0)
    rows = torch.randn(SIDE // 8 * SIDE).bfloat16().view(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in [len(header).to_bytes(8, "little") + header, *[rows] * (LAYERS * 8)]:
            file.write(piece)
            digest.update(piece)
    return FileDigest(name=path.name, size=path.stat().st_size, sha256=digest.hexdigest())


def main(folder: Path, base: FileDigest) -> None:
    delta = Delta(torch.randn(RANK, SIDE), torch.randn(SIDE, RANK), scaling=2.0, experts=1, transposed=False)
    deltas = {name_of(layer): delta for layer in range(ADAPTED_LAYERS)}
    before = peak_bytes()
    (merged,) = write_merged(folder, [base], "llama", deltas, folder / "merged")
    peak = peak_bytes()
    changed = [begins_otherwise(layer, folder / base.name, folder / "merged" / merged.name) for layer in range(LAYERS)]
    (folder / "merged" / merged.name).unlink()
    print(json.dumps({"bytesBefore": before, "peakBytes": peak, "changed": changed}))


def begins_otherwise(layer: int, base: Path, merged: Path) -> bool:
    """Whether the two files differ in a tensor's first bytes."""
    found = []
    for path in (base, merged):
        with path.open("rb") as file:
            file.seek((layer - LAYERS) * SIDE * SIDE * 2, os.SEEK_END)
            found.append(file.read(4096))
    return found[0] != found[1]


def peak_bytes() -> int:
    """The most that this process has held in memory, mapped files included."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), FileDigest(name=sys.argv[2], size=int(sys.argv[3]), sha256=sys.argv[4]))
