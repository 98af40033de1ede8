"""index.json: what a tokens folder holds, put together from its groups."""

from __future__ import annotations

from collections.abc import Sequence

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.prepare.report import DATE_NOTE, data_notes, data_report, report_sources
from cloister_trainer.prepare.row_worker import Counts, RowOptions
from cloister_trainer.prepare.select import Selection
from cloister_trainer.prepare.shards import GroupResult
from cloister_trainer.prepare.survey import SurveyedSource
from cloister_trainer.prepare.template import ChatTemplate
from cloister_trainer.records import TokensIndex


def make_index(
    options: RowOptions,
    surveyed: list[SurveyedSource],
    selection: Selection,
    groups: list[GroupResult],
    digest: str,
    vocabulary: int | None,
) -> TokensIndex:
    """The index of all groups.

    Raises CloisterError DatasetInvalid when nothing is left to train, ModelUnsupported when a token lies outside the
    model's vocabulary.
    """
    counts = Counts()
    for group in groups:
        counts.add(group.counts)
    epoch_examples = sum(group.epoch_examples for group in groups)
    if not epoch_examples:
        raise _nothing_to_train(options, counts)
    largest_id = max(group.largest_id for group in groups)
    _check_vocabulary(largest_id, vocabulary)
    stop_token, template_notes = _stop_token(options, surveyed)
    notes = template_notes + data_notes(surveyed, selection, counts, options)
    return TokensIndex(
        digest=digest,
        train=[shard for group in groups for shard in group.train],
        validation=[shard for group in groups for shard in group.validation],
        epoch_examples=epoch_examples,
        epoch_tokens=sum(group.epoch_tokens for group in groups),
        epoch_trained_tokens=sum(group.epoch_trained_tokens for group in groups),
        validation_examples=sum(shard.examples for group in groups for shard in group.validation),
        longest=max(group.longest for group in groups),
        largest_id=largest_id,
        stop_token_id=stop_token,
        pad_token_id=options.kit.pad_id,
        samples=[sample for group in groups for sample in group.samples],
        report=data_report(surveyed, selection, counts, options.max_length, notes),
    )


def adopt_index(index: TokensIndex, surveyed: list[SurveyedSource], vocabulary: int | None) -> TokensIndex:
    """The index that another job left for the same rows, with this job's sources in its report.

    Raises CloisterError ModelUnsupported when a token lies outside this job's model's vocabulary.
    """
    _check_vocabulary(index.largest_id, vocabulary)
    return index.model_copy(update={"report": {**index.report, "sources": report_sources(surveyed)}})


def with_notes(index: TokensIndex, notes: Sequence[str]) -> TokensIndex:
    """The index with this job's own notes in its report: what is stored serves other jobs, too."""
    return index.model_copy(update={"report": {**index.report, "notes": [*notes, *index.report.get("notes", ())]}})


def _stop_token(options: RowOptions, surveyed: list[SurveyedSource]) -> tuple[int | None, list[str]]:
    """The token that ends an answer, and what is worth knowing about the template that writes it."""
    if not any(one.conversations for one in surveyed):
        return options.kit.eos_id, []
    template = ChatTemplate(options.kit)
    notes = [DATE_NOTE] if template.writes_date else []
    return options.kit.added_tokens.get(template.tail.terminator), notes


def _nothing_to_train(options: RowOptions, counts: Counts) -> CloisterError:
    if counts.shortest_dropped:
        return CloisterError(
            FailureReason.DATASET_INVALID,
            f"All training rows are too long: each of them has more than {options.max_length} tokens, the shortest "
            f"{counts.shortest_dropped}. Raise training.maxLength, or set dataset.tooLong to Truncate.",
        )
    return CloisterError(
        FailureReason.DATASET_INVALID,
        "No row is left to train: all are held out for validation, or left out by their source's weight. Lower "
        "dataset.validation.fraction, raise the weights, or add rows.",
    )


def _check_vocabulary(largest: int, vocabulary: int | None) -> None:
    if vocabulary is not None and largest >= vocabulary:
        raise CloisterError(
            FailureReason.MODEL_UNSUPPORTED,
            f"The tokenizer wrote token {largest}, and the model's config.json has a vocabulary of {vocabulary}: the "
            "tokenizer is not this model's. Put the model's own tokenizer files into the model folder.",
        )
