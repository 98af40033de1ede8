"""The base model on a node's disk: fetched once, resumed, verified, and there whole or not at all.

`<cache root>/<fingerprint>/` appears by a rename when every file is complete and hashed. Until then the files
grow in `.<fingerprint>.partial/`, with a journal beside it, under a lock that other processes of the node wait
for.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_trainer.records import FileDigest, ModelRecord
from cloister_trainer.storage.base import parse_uri
from cloister_trainer.storage.completion import completed, say_complete
from cloister_trainer.storage.errors import Changed, Full, InvalidUri, MissingBucket, MissingObject
from cloister_trainer.storage.os_errors import translate_os_error
from cloister_trainer.storage.storage import Storage
from cloister_trainer.storage.weights import InPlaceFile, Journal, PartialFile, Progress, Source, WeightFile

PARALLEL_PARTS = 16
"""Ranges fetched at a time."""
PARALLEL_FILES = 4
"""Files fetched at a time: a file's hash is sequential, so that several files hash on several cores."""
GIB = 1024**3


@dataclass(frozen=True)
class FetchedModel:
    """A complete model folder on this node."""

    folder: Path
    """Small files and weight files; links where the model is read in place."""
    weight_files: list[FileDigest]
    """Sorted by name."""
    base_digest: str


def base_digest(files: Iterable[FileDigest]) -> str:
    """sha256 over the lines `name sha256\\n` of the weight files, sorted by name."""
    lines = sorted(f"{file.name} {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fetch_model(
    storage: Storage, model: ModelRecord, cache_root: Path, on_bytes: Callable[[int], None] | None = None
) -> FetchedModel:
    """The model's small and weight files in `cache_root/<fingerprint>/`.

    Several processes may call this together: one fetches, the others wait and use the result. Killed and called again,
    it keeps every part whose hash is still right. s3:// models are downloaded; file:// and pvc:// models are hashed
    where they lie and linked. `on_bytes` hears, from one thread at a time, how many more bytes of weights are there.

    Raises Changed or Missing* (both with MODEL_NOT_FOUND) when the files are not those that prepare recorded, Full with
    LOCAL_DISK_FULL, Unreachable, AccessDenied.
    """
    _require_names(model)
    folder = cache_root / model.fingerprint
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
        with _lock(cache_root / f".{model.fingerprint}.lock"):
            digests, progress = completed(folder, model), Progress(on_bytes)
            if digests is None:
                digests = _fetch(storage, model, folder, progress)
            else:
                progress.add(sum(file.size for file in digests))
    except (MissingBucket, MissingObject, Changed) as error:
        raise type(error)(error.message, FailureReason.MODEL_NOT_FOUND) from None
    except OSError as error:
        raise translate_os_error(error, str(folder), "fetching the model into") from None
    return FetchedModel(folder, digests, base_digest(digests))


def _fetch(storage: Storage, model: ModelRecord, folder: Path, progress: Progress) -> list[FileDigest]:
    partial = folder.with_name(f".{folder.name}.partial")
    journal = Journal(folder.with_name(f".{folder.name}.journal"))
    partial.mkdir(exist_ok=True)
    sources = [Source(storage, join(model.uri, listed.name), listed) for listed in model.weight_files]
    files = [_weight_file(source, partial / source.listed.name, journal, progress) for source in sources]
    with journal, ThreadPoolExecutor(PARALLEL_PARTS) as pool:
        _all(pool, [each.prepare for each in files])
        _require_space(partial, model, sum(each.bytes_missing for each in files))
        small = [lambda file=file: _fetch_small(storage, model, file, partial) for file in model.small_files]
        _all(pool, [*small, *_in_lanes(files)])
    digests = sorted((each.digest() for each in files), key=lambda each: each.name)
    say_complete(partial, [*model.small_files, *digests])
    partial.rename(folder)
    journal.delete()
    return digests


def _weight_file(source: Source, path: Path, journal: Journal, progress: Progress) -> WeightFile:
    origin = source.storage.local_path(source.uri)
    if origin is not None:
        return InPlaceFile(source, origin, path, progress)
    return PartialFile(source, path, journal, progress)


def _require_names(model: ModelRecord) -> None:
    """The index of a model names files; none may lead out of the folder."""
    for name in [*(file.name for file in model.small_files), *(file.name for file in model.weight_files)]:
        if name.startswith("/"):
            raise InvalidUri(f"{name!r} in {model.uri} names no file in the model's folder: correct the index.")
        parse_uri(join(model.uri, name))


def _fetch_small(storage: Storage, model: ModelRecord, file: FileDigest, partial: Path) -> None:
    uri = join(model.uri, file.name)
    data = storage.read(uri)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise Changed(f"{uri} is not the file that prepare read (its sha256 differs): restore it, or start a new job.")
    path = partial / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _in_lanes(files: Sequence[WeightFile]) -> Iterator[Callable[[], None]]:
    """All parts in the order of fetching: PARALLEL_FILES files side by side, each from its start to its end."""
    shares = [files[first::PARALLEL_FILES] for first in range(PARALLEL_FILES)]
    lanes = [itertools.chain.from_iterable(each.parts() for each in share) for share in shares]
    for side_by_side in itertools.zip_longest(*lanes):
        yield from (part for part in side_by_side if part is not None)


def _all(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], None]]) -> None:
    """Run all; after a failure, or an interrupt, start no more and raise it."""
    futures = [pool.submit(task) for task in tasks]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _require_space(folder: Path, model: ModelRecord, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Full(
            f"The weights of {model.uri} need {needed / GIB:.1f} GiB more in {folder.parent}, where "
            f"{free / GIB:.1f} GiB are free: raise model.cache.size, or free space there.",
            FailureReason.LOCAL_DISK_FULL,
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until no other process of this node holds the lock; the kernel frees it when its holder dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
