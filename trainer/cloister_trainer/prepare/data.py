"""The dataset's way into tokens: checked, named by content, selected, tokenised, and stored once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import ValidationError

from cloister_api.errors import CloisterError
from cloister_api.layout import cache_folder, join
from cloister_api.run import Run
from cloister_trainer.cpus import usable_cpus
from cloister_trainer.prepare.index import adopt_index, make_index, with_notes
from cloister_trainer.prepare.job import check_rows, content_digest, row_options, vocabulary_size
from cloister_trainer.prepare.row_worker import RowWorker
from cloister_trainer.prepare.select import Selection, select
from cloister_trainer.prepare.shards import GROUPS, INDEX
from cloister_trainer.prepare.sources import Source, open_sources
from cloister_trainer.prepare.survey import SurveyedSource, survey
from cloister_trainer.prepare.tokenise import Destination, tokenise
from cloister_trainer.prepare.workers import Workers
from cloister_trainer.records import TokensIndex
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import MissingObject, Storage

BYTES_PER_PROCESS = 2 << 20
"""Below this much data for each, starting another process costs more than it brings."""


def prepare_tokens(
    run: Run,
    storage: Storage,
    model_folder: Path,
    position_limit: int,
    scratch: Path,
    reporter: Reporter,
    processes: int | None = None,
) -> tuple[str, TokensIndex]:
    """Tokenise the run's dataset into its tokens folder, or find the tokens there.

    Two passes: the first checks every row and names it by content, the second tokenises what was selected. Rows are
    never all in memory: each leaves 24 bytes of hashes, and choosing among them takes 60 more for a moment. A
    call after a killed one goes on after the last finished group of shards. `model_folder` holds the tokenizer;
    `position_limit` is the longest sequence that the model allows; `processes` defaults to the usable CPUs.

    Returns the folder's URI and its index. Raises CloisterError: DatasetInvalid with the first problems and their
    count, DatasetNotFound, ModelUnsupported, SpecInvalid, and those of the storage.
    """
    spec = run.spec
    options = row_options(spec, storage, model_folder, position_limit)
    sources = open_sources(storage, spec.dataset)
    for source in sources:
        reporter.say(f"{source.uri}: {source.detected.describe()}.")
    with Workers(partial(RowWorker, options), processes or _processes_for(sources)) as workers:
        with reporter.progress("Reading rows", None) as progress:
            surveyed = survey(storage, sources, workers, progress)
        check_rows(options, surveyed)
        digest = content_digest(options, spec.dataset, spec.evaluation.samples, surveyed)
        folder = cache_folder(spec.dataset.cache_uri, digest) if spec.dataset.cache_uri else run.layout.tokens
        vocabulary = vocabulary_size(model_folder)
        if (stored := read_index(storage, folder, digest)) is not None:
            reporter.say(f"The tokens of this dataset are already at {folder}; nothing is tokenised.")
            return folder, with_notes(adopt_index(stored, surveyed, vocabulary), options.kit.notes)
        if (earlier := earlier_tokens(run, storage, digest)) is not None:
            reporter.say(f"The tokens at {earlier[0]} are of this dataset; nothing is tokenised.")
            return earlier[0], with_notes(adopt_index(earlier[1], surveyed, vocabulary), options.kit.notes)
        selection = _select(run, surveyed)
        scratch.mkdir(parents=True, exist_ok=True)
        to = Destination(storage, folder, scratch, digest)
        try:
            with reporter.progress("Tokenising rows", len(selection.fates)) as progress:
                groups = tokenise(to, surveyed, selection.fates, workers, progress)
            index = make_index(options, surveyed, selection, groups, digest, vocabulary)
        except CloisterError as error:
            if error.reason.facts.refusal:
                storage.delete_prefix(folder)
            raise
    storage.write(join(folder, INDEX), index.model_dump_json(by_alias=True).encode())
    storage.delete_prefix(join(folder, GROUPS))
    _tell(index, reporter)
    return folder, with_notes(index, options.kit.notes)


def read_index(storage: Storage, folder: str, digest: str) -> TokensIndex | None:
    """The index of a complete tokens folder with this digest, or None; tokens of another digest are deleted."""
    try:
        index = TokensIndex.model_validate_json(storage.read(join(folder, INDEX)))
    except MissingObject:
        return None
    except ValidationError:
        index = None
    if index is not None and index.digest == digest:
        return index
    storage.delete_prefix(folder)
    return None


def earlier_tokens(run: Run, storage: Storage, digest: str) -> tuple[str, TokensIndex] | None:
    """The tokens of the run that resumeFrom names, where they are complete and of the same content."""
    if run.spec.resume_from is None:
        return None
    folder = join(run.spec.resume_from.uri, "tokens")
    try:
        index = TokensIndex.model_validate_json(storage.read(join(folder, INDEX)))
    except (MissingObject, ValidationError):
        return None
    return (folder, index) if index.digest == digest else None


def _select(run: Run, surveyed: list[SurveyedSource]) -> Selection:
    trained = [one.rows() for one in surveyed if not one.source.held_out]
    separate = next((one.rows() for one in surveyed if one.source.held_out), None)
    return select(trained, separate, run.spec.dataset, run.spec.evaluation.samples)


def _processes_for(sources: list[Source]) -> int:
    size = sum(file.size for source in sources for file in source.files)
    return max(1, min(usable_cpus(), size // BYTES_PER_PROCESS))


def _tell(index: TokensIndex, reporter: Reporter) -> None:
    reporter.say(
        f"{index.epoch_examples} training examples an epoch ({index.epoch_tokens} tokens, {index.epoch_trained_tokens} "
        f"of them trained), {index.validation_examples} validation examples; the longest has {index.longest} tokens."
    )
