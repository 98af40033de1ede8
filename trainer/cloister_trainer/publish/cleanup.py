"""After publication: the run is marked as published; tokens, checkpoints and the staged merged model go."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from cloister_api.base import ApiModel
from cloister_api.layout import join
from cloister_api.run import Run
from cloister_api.spec_cluster import KeepRun
from cloister_trainer.publish.manifest import Deletion
from cloister_trainer.publish.sealed import SealedFolder
from cloister_trainer.records import PlanFile
from cloister_trainer.storage import Storage

RECORD_FILE = "deleted.json"

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time that records name."""
    return datetime.now(UTC)


class DeletionRecord(ApiModel):
    """deleted.json in the run folder: written once everything that it names is gone."""

    version: Literal[1] = 1
    deleted: list[str]
    """URIs of the deleted folders."""
    time: str


def planned_deletions(run: Run, plan: PlanFile) -> list[Deletion]:
    """What becomes of the run's data once the adapter is published.

    Tokens in dataset.cacheUri or in another run's folder are not this run's to delete.
    """
    when: Literal["AfterPublication", "Kept"]
    when = "Kept" if run.spec.output.keep_run is KeepRun.ALWAYS else "AfterPublication"
    own = plan.tokens_uri.rstrip("/") == run.layout.tokens
    deletions = [
        Deletion(what="tokens", uri=plan.tokens_uri, when=when if own else "Kept"),
        Deletion(what="checkpoints", uri=run.layout.checkpoints, when=when),
    ]
    if run.spec.output.merged_model:
        deletions.append(Deletion(what="staged merged model", uri=run.layout.merged, when=when))
    return deletions


def clean_up(run: Run, plan: PlanFile, published: SealedFolder, storage: Storage, clock: Clock) -> None:
    """Mark a run whose own adapter is `published`, then delete what `planned_deletions` says, and record that.

    Where nothing is left, the record stays as it is; but it does not end the work: a pod that was given up may have
    written after it.
    """
    if published.manifest.uid == run.uid and not storage.exists(run.layout.published_file):
        storage.write(run.layout.published_file, published.pointer.encode())
    record = join(run.layout.root, RECORD_FILE)
    uris = [deletion.uri for deletion in planned_deletions(run, plan) if deletion.when == "AfterPublication"]
    if not uris:
        return
    deleted = sum([storage.delete_prefix(uri) for uri in uris])
    if not deleted and storage.exists(record):
        return
    time = clock().isoformat(timespec="seconds")
    storage.write(record, DeletionRecord(deleted=uris, time=time).model_dump_json(by_alias=True, indent=2).encode())
