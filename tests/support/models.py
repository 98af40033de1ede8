"""Model folders of random bytes in a store, and fetching them in a process that can be killed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from cloister_trainer.records import FileDigest, LicenseFinding, ListedFile, ModelRecord
from cloister_trainer.storage import Storage, fetch, fetch_model, open_storage, weights

SMALL_PART_BYTES = 1024 * 1024
SMALL_FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b'{"version": "1.0"}'}


def store_model(storage: Storage, uri: str, sizes: list[int], scratch: Path) -> ModelRecord:
    """A folder with small files and weight files of these sizes, as prepare would record it."""
    for name, data in SMALL_FILES.items():
        storage.write(f"{uri}/{name}", data)
    for number, size in enumerate(sizes, 1):
        (scratch / "weights").write_bytes(os.urandom(size))
        storage.upload(scratch / "weights", f"{uri}/model-{number:05d}.safetensors")
    storage.write(f"{uri}/modeling_llama.py", b"raise SystemExit")
    return record(storage, uri)


def record(storage: Storage, uri: str) -> ModelRecord:
    """What prepare records of a model's folder, as far as fetching reads it."""
    listed = [each for each in storage.list(uri) if each.name.endswith(".safetensors")]
    return ModelRecord(
        uri=uri,
        model_type="llama",
        architecture="LlamaForCausalLM",
        small_files=[
            FileDigest(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in SMALL_FILES.items()
        ],
        weight_files=[ListedFile(name=each.name, size=each.size, etag=each.etag) for each in listed],
        header_digest="",
        fingerprint=hashlib.sha256(repr(listed).encode()).hexdigest(),
        ignored_files=["modeling_llama.py"],
        base_parameters=0,
        license=LicenseFinding(id="apache-2.0", evidence="Stated"),
        position_limit=0,
    )


def start_fetching(model: ModelRecord, cache: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that fetches the model in parts of SMALL_PART_BYTES, four at a time, and prints the base digest."""
    return subprocess.Popen(
        [sys.executable, "-m", "support.models", model.model_dump_json(by_alias=True), str(cache)],
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    weights.PART_BYTES, fetch.PARALLEL_PARTS = SMALL_PART_BYTES, 4
    print(fetch_model(open_storage(), ModelRecord.model_validate_json(sys.argv[1]), Path(sys.argv[2])).base_digest)
