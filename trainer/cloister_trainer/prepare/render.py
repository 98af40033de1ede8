"""Turns a canonical row into text with the spans that carry loss.

Spans are right by construction: they lie where the template's own `{% generation %}` marks say, or else between what
the template writes when it asks for an answer and the token with which it ends the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_data import TrainOn
from cloister_trainer.prepare.outline import Outline, is_plain, make_outline, placeholders
from cloister_trainer.prepare.problems import RowError
from cloister_trainer.prepare.rows import Conversation, Message, PlainText, Row
from cloister_trainer.prepare.template import CharSpan, ChatTemplate
from cloister_trainer.prepare.tokenizer import TokenizerKit

OUTLINES_KEPT = 1024
"""Sequences of roles whose outlines are kept."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """An example as text, and the character spans [start, end) whose tokens carry loss."""

    text: str
    spans: list[CharSpan]
    plain: bool
    """Without a template: the tokenizer's own beginning of a sequence goes before it."""


class Renderer:
    """Renders rows for one job: template, loss spans, system prompt."""

    def __init__(self, kit: TokenizerKit, train_on: TrainOn, system_prompt: str | None) -> None:
        self._kit, self._train_on = kit, train_on
        self._template: ChatTemplate | None = None
        self._outlines: dict[tuple[tuple[str, ...], int], Outline | None] = {}
        self._system: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template, read when the first conversation needs it.

        Raises CloisterError DatasetInvalid for a model without one.
        """
        if self._template is None:
            if self._kit.template is None:
                raise CloisterError(
                    FailureReason.DATASET_INVALID,
                    "The rows are conversations, and the model has no chat template, as base models have none. Give "
                    "one in model.chatTemplate, or use rows with the strings prompt and completion.",
                )
            self._template = ChatTemplate(self._kit)
        return self._template

    def render(self, row: Row) -> list[Rendered]:
        """The examples of a row: one, or several where the template rewrites earlier turns (see `_by_turns`).

        Raises RowError when the template fails on the row or nothing in it would be trained.
        """
        if isinstance(row, PlainText):
            return [self._plain(row)]
        template, messages, first = self._conversation(row)
        if row.tools:
            _check_tools_are_written(template, messages, row.tools)
        if self._train_on is TrainOn.ALL:
            text = template.render(messages, row.tools)
            for index, message in enumerate(messages):
                _check_answer_is_written(template, text, message, f"message {index + 1}")
            return [Rendered(text, [(0, len(text))], plain=False)]
        turns = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
        if not turns:
            raise RowError("", "a row without an assistant message", "at least one, since only these are trained")
        if self._train_on is TrainOn.LAST_TURN:
            turns = turns[-1:]
        messages = messages[: turns[-1] + 1]
        if template.marks_generation:
            return [self._by_marks(template, messages, row.tools, turns)]
        if row.tools is None and all(map(is_plain, messages)):
            outlined = self._by_outline(template, messages, turns)
            if outlined is not None:
                return [outlined]
        return self._by_turns(template, messages, row.tools, turns)

    def prompt(self, row: Row) -> tuple[Rendered, str] | None:
        """What stands before the last answer, and the answer's text; None for text without a prompt."""
        if isinstance(row, PlainText):
            return (Rendered(row.prompt, [], plain=True), row.completion) if row.prompt else None
        template, messages, _ = self._conversation(row)
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        answer = messages[last].get("content", "") if last > 0 else ""
        if not answer:
            return None
        return Rendered(template.render(messages[:last], row.tools, generation_prompt=True), [], plain=False), answer

    def _plain(self, row: PlainText) -> Rendered:
        eos = self._kit.eos_token
        if not eos:
            raise CloisterError(
                FailureReason.MODEL_UNSUPPORTED,
                "The tokenizer has no end-of-sequence token, with which a completion must end. Add eos_token to "
                "tokenizer_config.json in the model folder.",
            )
        text = row.prompt + row.completion
        text = text if text.endswith(eos) else text + eos
        start = 0 if self._train_on is TrainOn.ALL else len(row.prompt)
        return Rendered(text, [(start, len(text))], plain=True)

    def _conversation(self, row: Conversation) -> tuple[ChatTemplate, list[Message], int]:
        """Template, messages with the system prompt, and the index of the first message that may be trained."""
        has_system = row.messages[0]["role"] in ("system", "developer")
        system = [] if has_system else self._system
        return self.template, system + row.messages, row.trained_from + len(system)

    def _by_outline(self, template: ChatTemplate, messages: list[Message], turns: Sequence[int]) -> Rendered | None:
        """What `_by_turns` gives, from the outline of the roles; None when the outline is not what the template wrote.

        Templates that strip contents are tried with stripped ones.
        """
        key = (tuple(message["role"] for message in messages), turns[0])
        if key not in self._outlines:
            if len(self._outlines) >= OUTLINES_KEPT:
                self._outlines.clear()
            self._outlines[key] = self._outline(template, messages, turns)
        outline = self._outlines[key]
        if outline is None:
            return None
        text = template.render(messages, None)
        contents = [message["content"] for message in messages]
        for filled in (contents, [content.strip() for content in contents]):
            if outline.fill(filled) == text:
                return Rendered(text, outline.spans_with(filled), plain=False)
        return None

    def _outline(self, template: ChatTemplate, messages: list[Message], turns: Sequence[int]) -> Outline | None:
        contents = placeholders(len(messages))
        blank = [{"role": old["role"], "content": new} for old, new in zip(messages, contents, strict=True)]
        try:
            examples = self._by_turns(template, blank, None, turns)
        except RowError:
            return None
        return make_outline(examples[0].text, examples[0].spans, contents) if len(examples) == 1 else None

    def _by_marks(
        self, template: ChatTemplate, messages: list[Message], tools: list[dict[str, Any]] | None, turns: Sequence[int]
    ) -> Rendered:
        """Spans from the template's `{% generation %}` marks, each carried on, or cut, to the turn's terminator."""
        text, marks = template.render_marked(messages, tools)
        before_first = any(message["role"] == "assistant" for message in messages[: turns[0]])
        border = len(template.render(messages[: turns[0]], tools, generation_prompt=True)) if before_first else 0
        spans = [
            (max(start, border), _end_of_mark(template, text, start, end))
            for start, end in _joined(marks)
            if end > border
        ]
        if not spans:
            raise RowError("", "no text that the chat template marks as generated", "the assistant's text marked")
        marked: list[Message] = [messages[turn] for turn in turns] if len(turns) == len(spans) else [{}] * len(spans)
        for message, (start, end) in zip(marked, spans, strict=True):
            _check_answer_is_written(template, text[start:end], message, "")
        return Rendered(text, spans, plain=False)

    def _by_turns(
        self, template: ChatTemplate, messages: list[Message], tools: list[dict[str, Any]] | None, turns: Sequence[int]
    ) -> list[Rendered]:
        """Spans by rendering the conversation up to each assistant turn.

        A turn's span goes from the end of its prompt (all before it, with the generation prompt) to the end of its
        terminator. Both must be the beginning of the whole conversation's text, character by character; then the
        turn is trained exactly as the model will meet it. Where the template rewrites earlier turns once later ones
        follow (it drops their reasoning, say), these turns get an example of their own that ends with them.
        """
        examples: list[Rendered] = []
        left = list(turns)
        while left:
            last = left[-1]
            text = template.render(messages[: last + 1], tools)
            spans: dict[int, CharSpan] = {}
            for turn in left:
                prompt = template.render(messages[:turn], tools, generation_prompt=True)
                whole = text if turn == last else template.render(messages[: turn + 1], tools)
                end = self._turn_end(template, prompt, whole, turn)
                _check_answer_is_written(template, whole[len(prompt) : end], messages[turn], f"message {turn + 1}")
                if text.startswith(whole[:end]):
                    spans[turn] = (len(prompt), end)
            examples.append(Rendered(text, list(spans.values()), plain=False))
            left = [turn for turn in left if turn not in spans]
        return examples[::-1]

    def _turn_end(self, template: ChatTemplate, prompt: str, whole: str, turn: int) -> int:
        """Where the turn's terminator ends in `whole`, the conversation rendered up to and with the turn."""
        if not whole.startswith(prompt):
            raise RowError(
                f"message {turn + 1}",
                "an assistant turn that the chat template does not begin with its own generation prompt",
                "the same text as when the model is asked for an answer",
                "Give another template in model.chatTemplate, or one with {% generation %} marks.",
            )
        end = template.turn_end(whole[len(prompt) :])
        if end is None:
            raise RowError(
                f"message {turn + 1}",
                "an assistant turn that the chat template ends with no special token",
                f"{template.tail.terminator} or another special token at the turn's end",
                "Give another template in model.chatTemplate.",
            )
        return len(prompt) + end


def _check_tools_are_written(template: ChatTemplate, messages: list[Message], tools: list[dict[str, Any]]) -> None:
    """Refuse tool definitions that a template leaves out: its answers would call what no prompt tells of."""
    if template.render(messages, tools) == template.render(messages, None):
        raise RowError(
            "tools",
            "tool definitions that the chat template does not write",
            "a template that knows tools",
            "Give one in model.chatTemplate, or remove the tools from the rows.",
        )


def _check_answer_is_written(template: ChatTemplate, trained: str, message: Message, place: str) -> None:
    """Refuse a turn whose answer or tool calls a template leaves out: the model would learn to stop at once."""
    action = "Give a template that writes it in model.chatTemplate, or remove the row."
    names = [call.get("function", call)["name"] for call in message.get("tool_calls", [])]
    if not all(name in trained for name in names):
        raise RowError(place, "tool_calls that the chat template does not write", "the name of each function", action)
    if not template.without_terminator(trained).strip():
        raise RowError(place, "an answer that the chat template does not write", "text before the turn's end", action)


def _joined(marks: Sequence[CharSpan]) -> list[CharSpan]:
    """The marks, those without text between them as one: Phi-3's end-of-sequence token has a mark of its own."""
    joined: list[CharSpan] = []
    for start, end in marks:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _end_of_mark(template: ChatTemplate, text: str, start: int, end: int) -> int:
    """The end of the terminator: inside the mark when it is there, else right after it; or of another special token
    at the mark's end, as templates write where the conversation goes on."""
    terminator = template.tail.terminator
    if (inside := text.rfind(terminator, start, end)) >= 0 and not text[inside + len(terminator) : end].strip():
        return inside + len(terminator)
    after = end + len(text[end:]) - len(text[end:].lstrip())
    if text.startswith(terminator, after):
        return after + len(terminator)
    if (own_end := template.turn_end(text[start:end])) is not None:
        return start + own_end
    raise RowError(
        "",
        "an assistant turn whose {% generation %} mark does not end on the turn's terminator",
        f"{terminator} at the mark's end or right after it",
        "Correct the template in model.chatTemplate.",
    )
