"""Fetching a base model against a plain parallel download from the same store.

Ours hashes every byte (sha256) and keeps a journal so that a kill costs little; the plain one is boto3's download_file
with its threads, for all files at once. Both run in turn against one SeaweedFS; the medians of their speeds are
compared. Goal: a ratio of at least 0.9.

    python benchmarks/fetch.py --size-mb 1024
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from boto3.s3.transfer import TransferConfig

from cloister_trainer.records import ModelRecord
from cloister_trainer.storage import fetch_model, open_storage
from cloister_trainer.storage.fetch import PARALLEL_FILES, PARALLEL_PARTS
from cloister_trainer.storage.weights import PART_BYTES
from support.models import SMALL_FILES, record
from support.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET = "models"


def main() -> None:
    """Prints the speed of each run and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1024, help="size of the model in MiB")
    parser.add_argument("--files", type=int, default=4, help="number of weight files")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each")
    parser.add_argument("--folder", type=Path, help="where to download to (default: a temporary folder)")
    arguments = parser.parse_args()
    with SeaweedFS() as store, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        scratch, uri = Path(folder), f"{store.create_bucket(BUCKET)}/model"
        model = _upload(store, uri, arguments.size_mb, arguments.files, scratch)
        ours, plain = _race(store, model, arguments.rounds, arguments.size_mb, scratch)
    print(f"plain {plain:7.0f} MiB/s\nfetch {ours:7.0f} MiB/s, with sha256\nratio {ours / plain:7.2f}")


def _upload(store: SeaweedFS, uri: str, size_mb: int, files: int, scratch: Path) -> ModelRecord:
    storage = open_storage(environ=store.environment())
    for name, data in SMALL_FILES.items():
        storage.write(f"{uri}/{name}", data)
    source = scratch / "source"
    for number in range(files):
        with source.open("wb") as file:
            for _ in range(size_mb // files):
                file.write(os.urandom(1024 * 1024))
        storage.upload(source, f"{uri}/model-{number:05d}.safetensors")
    source.unlink()
    return record(storage, uri)


def _race(store: SeaweedFS, model: ModelRecord, rounds: int, size_mb: int, scratch: Path) -> tuple[float, float]:
    ours: list[float] = []
    plain: list[float] = []
    client, storage = store.client(), open_storage(environ=store.environment())
    storage.list(model.uri)  # makes its client, as every process does once
    _seconds(lambda folder: _plain_download(client, model, folder), scratch / "warm-up")  # the store's own caches
    for _ in range(rounds):
        plain.append(size_mb / _seconds(lambda folder: _plain_download(client, model, folder), scratch / "plain"))
        ours.append(size_mb / _seconds(lambda folder: fetch_model(storage, model, folder), scratch / "ours"))
        print(f"plain {plain[-1]:7.0f} MiB/s   fetch {ours[-1]:7.0f} MiB/s")
    return statistics.median(ours), statistics.median(plain)


def _seconds(download: Callable[[Path], object], folder: Path) -> float:
    os.sync()  # nobody pays for what another left to write
    start = time.perf_counter()
    download(folder)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def _plain_download(client: S3Client, model: ModelRecord, folder: Path) -> None:
    folder.mkdir()
    config = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=max(1, PARALLEL_PARTS // min(PARALLEL_FILES, len(model.weight_files))),
    )
    prefix = model.uri.removeprefix(f"s3://{BUCKET}/")

    def download(name: str) -> None:
        client.download_file(BUCKET, f"{prefix}/{name}", str(folder / name), Config=config)

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        list(pool.map(download, [file.name for file in model.weight_files]))


if __name__ == "__main__":
    main()
