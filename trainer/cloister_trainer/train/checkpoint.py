"""Checkpoints: adapter, moments and progress in one folder of the store, complete when its index is there.

`checkpoints/step-000120/state.safetensors` holds the float32 adapter tensors under their names and AdamW's moments
under `exp_avg.<name>` and `exp_avg_sq.<name>`; `best.safetensors` the best adapter, when that is another one;
`index.json`, written last, the digests, its own too, and the run's progress. Nothing depends on the number of ranks or
on ZeRO, and the newest is the one of the highest step, whatever the clocks say.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister_api.errors import CloisterError
from cloister_api.layout import RunLayout, join
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_trainer.records import FileDigest, PlanFile
from cloister_trainer.storage import MissingObject, Storage
from cloister_trainer.train.checkpoint_index import INDEX, CheckpointIndex, listed_checkpoints, read_index
from cloister_trainer.train.patience import Patience

if TYPE_CHECKING:
    from torch import Tensor

STATE, BEST = "state.safetensors", "best.safetensors"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, fetched and verified."""

    uri: str
    index: CheckpointIndex
    folder: Path

    @property
    def run_folder(self) -> str:
        """The run that made it: this one, or resumeFrom's."""
        return self.uri.rpartition("/checkpoints/")[0]

    @contextmanager
    def tensors(self, file: str = STATE) -> Iterator[Callable[[str], Tensor]]:
        """A function that reads a tensor of `file` by name, in host memory."""
        from safetensors import safe_open

        with safe_open(self.folder / file, framework="pt") as opened:
            yield opened.get_tensor

    def best_adapter(self) -> dict[str, Tensor] | None:
        """The best adapter's tensors, None when no evaluation was made."""
        if self.index.state.best_step is None:
            return None
        own = self.index.state.best_step == self.index.step
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(self.folder / (STATE if own else BEST))
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(("exp_avg.", "exp_avg_sq."))}


def resume_settings(run: Run, plan: PlanFile) -> dict[str, Any]:
    """The settings that fix the adapter's tensors and the order of examples: a run goes on only with the same."""
    training = run.spec.training.to_api()
    keys = ("globalBatchSize", "seed")
    return {
        "model": plan.model.fingerprint,
        "tokens": plan.data.digest,
        "lora": run.spec.lora.to_api(),
        **{f"training.{key}": training[key] for key in keys},
    }


def newest_step(storage: Storage, layout: RunLayout) -> int:
    """Step of the newest checkpoint that has an index which can be read, 0 without one; reads no tensors."""
    for step, names in listed_checkpoints(storage, layout.checkpoints):
        if INDEX in names and read_index(storage, layout.checkpoint(step), step) is not None:
            return step
    return 0


def fetch_newest(storage: Storage, run: Run, plan: PlanFile, folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint of the run, else of resumeFrom's, fetched into `folder` and verified.

    One that was cut short (no index, a missing, short or changed file), or whose index this version cannot read, is
    passed over for the one before it. Raises CloisterError (SPEC_INVALID) when resumeFrom's run had other settings.
    """
    own = _fetch_first(storage, run.layout.checkpoints, folder)
    if own is not None or run.spec.resume_from is None:
        return own
    other = _fetch_first(storage, join(run.spec.resume_from.uri, "checkpoints"), folder)
    if other is not None:
        _require_same_settings(other, resume_settings(run, plan))
    return other


def drop_checkpoints_beyond(storage: Storage, layout: RunLayout, step: int) -> None:
    """Delete the checkpoints after `step`: the run goes on from there because they are damaged.

    One whose index cannot be read may be whole for another version: it stays, and counts neither as the newest nor
    among those that are kept.
    """
    for later, names in listed_checkpoints(storage, layout.checkpoints):
        if later > step and (INDEX not in names or read_index(storage, layout.checkpoint(later), later) is not None):
            _delete(storage, layout, later)


def _delete(storage: Storage, layout: RunLayout, step: int) -> None:
    """The index goes first, so that no half folder looks whole."""
    uri = layout.checkpoint(step)
    storage.delete(join(uri, INDEX))
    storage.delete_prefix(uri)


def _fetch_first(storage: Storage, checkpoints: str, folder: Path) -> Checkpoint | None:
    for step, _ in listed_checkpoints(storage, checkpoints):
        uri = join(checkpoints, f"step-{step:06d}")
        index = read_index(storage, uri, step)
        if index is None:
            log.warning("Checkpoint %s has no index that can be read; the one before it is tried.", uri)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if all(_fetch_file(storage, uri, file, folder) for file in index.files):
            return Checkpoint(uri, index, folder)
    return None


def _fetch_file(storage: Storage, uri: str, file: FileDigest, folder: Path) -> bool:
    path = folder / file.name
    try:
        storage.download(join(uri, file.name), path)
    except MissingObject:
        log.warning("Checkpoint %s lacks %s; the one before it is tried.", uri, file.name)
        return False
    fetched = digest_of(path)
    if (fetched.size, fetched.sha256) == (file.size, file.sha256):
        return True
    log.warning("%s of checkpoint %s differs from its index; the one before it is tried.", file.name, uri)
    return False


def _require_same_settings(checkpoint: Checkpoint, wanted: Mapping[str, Any]) -> None:
    stored = checkpoint.index.settings
    different = sorted(key for key in wanted if stored.get(key) != wanted[key])
    if different:
        raise CloisterError(
            FailureReason.SPEC_INVALID,
            f"spec.resumeFrom: the checkpoint {checkpoint.uri} was made with another {', '.join(different)}. A run "
            "goes on only with the same model, tokens, lora and batch settings: restore them, or remove resumeFrom.",
        )


def digest_of(path: Path) -> FileDigest:
    """A file's name, size and sha256."""
    with path.open("rb") as file:
        return FileDigest(
            name=path.name, size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest()
        )


class CheckpointWriter:
    """Writes checkpoints beside the loop, one at a time, and keeps the newest ones. For rank 0."""

    def __init__(self, storage: Storage, layout: RunLayout, keep: int, folder: Path) -> None:
        self._storage, self._layout, self._keep, self._folder = storage, layout, keep, folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._again: Callable[[], Future[None]] | None = None
        """Starts writing what is under way once more."""
        self._readable: set[int] = set()
        """Steps whose index was written or read here."""

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being uploaded."""
        return self._under_way is not None and not self._under_way.done()

    def make_ready(self) -> None:
        """Wait for the checkpoint under way. When it failed and trying again can help, the next one takes its place.

        Raises what it failed with otherwise.
        """
        try:
            self.wait()
        except CloisterError as error:
            if not error.reason.facts.retryable:
                raise
            log.warning("A checkpoint could not be stored: %s", error)

    def write(
        self,
        index: CheckpointIndex,
        state: dict[str, Tensor],
        best: dict[str, Tensor] | None,
        metrics: tuple[str, bytes],
        when_complete: Callable[[str], None],
    ) -> None:
        """Start writing. The tensors are copies in host memory that nobody changes; `metrics` is a URI and content.

        `index` is sealed here. `make_ready` has been called.
        """

        def start() -> Future[None]:
            return self._pool.submit(self._write, index, state, best, metrics, when_complete)

        self._again, self._under_way = start, start()

    def wait(self, patience: Patience | None = None) -> None:
        """Until the checkpoint under way is complete; raises what it failed with.

        With `patience` it is written again for as long as that lasts while the store is away.
        """
        while self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            try:
                under_way.result()
            except CloisterError as failure:
                if patience is None or self._again is None:
                    raise
                patience.wait(failure)
                self._under_way = self._again()
            else:
                self._again = None
                if patience is not None:
                    patience.renew()

    def close(self) -> None:
        """Let the thread end when what is under way is done; waits for nothing."""
        self._pool.shutdown(wait=False)

    def _write(
        self,
        index: CheckpointIndex,
        state: dict[str, Tensor],
        best: dict[str, Tensor] | None,
        metrics: tuple[str, bytes],
        when_complete: Callable[[str], None],
    ) -> None:
        from safetensors.torch import save_file

        uri = self._layout.checkpoint(index.step)
        with ExitStack() as cleanup:
            cleanup.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
            files: list[FileDigest] = []
            for name, tensors in ((STATE, state), (BEST, best)):
                if tensors is None:
                    continue
                save_file(tensors, self._folder / name)
                files.append(digest_of(self._folder / name))
                self._storage.upload(self._folder / name, join(uri, name))
            self._storage.write(*metrics)
            self._storage.write(join(uri, INDEX), index.sealed(files))
        self._readable.add(index.step)
        when_complete(uri)
        try:
            self._prune()
        except CloisterError as error:
            log.warning("Older checkpoints stay, since they could not be deleted: %s", error)

    def _prune(self) -> None:
        """Delete all but the newest complete checkpoints; those whose index cannot be read stay."""
        listed = listed_checkpoints(self._storage, self._layout.checkpoints)
        for step in [step for step, names in listed if INDEX in names and self._can_read(step)][self._keep :]:
            _delete(self._storage, self._layout, step)

    def _can_read(self, step: int) -> bool:
        if step not in self._readable and read_index(self._storage, self._layout.checkpoint(step), step) is not None:
            self._readable.add(step)
        return step in self._readable
