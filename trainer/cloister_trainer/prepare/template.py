"""Runs a chat template, in jinja's sandbox as transformers does, and learns how it ends an assistant turn."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.prepare.problems import RowError
from cloister_trainer.prepare.rows import Message
from cloister_trainer.prepare.tokenizer import TokenizerKit

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ANSWER = "\ue000"
_PROBES: tuple[list[Message], ...] = (
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}],
    [{"role": "assistant", "content": _ANSWER}],
)
_CALL = {"type": "function", "function": {"name": "a", "arguments": {"a": "a"}}}
_TEMPLATE_ACTION = "Correct the row to what the template takes, or give another template in model.chatTemplate."

CharSpan = tuple[int, int]


@dataclass(frozen=True)
class Tail:
    """What the template writes after a last assistant turn, and where in it the terminator ends."""

    text: str
    end: int
    terminator: str


class ChatTemplate:
    """A model's chat template.

    Some (GLM's) end an assistant turn with nothing, and the model stops with the token that begins the next turn, which
    is one of its stop tokens: such a token is added to a conversation that ends on an assistant turn.

    Raises CloisterError ModelUnsupported when there is neither: a model trained on such turns never learns to stop.
    """

    def __init__(self, kit: TokenizerKit) -> None:
        if kit.template is None or kit.tool_template is None:
            raise ValueError("the tokenizer has no chat template")
        self._template, self._tool_template = kit.template, kit.tool_template
        self._variables = kit.template_variables
        self._added = sorted(kit.added_tokens, key=len, reverse=True)
        self.marks_generation = bool(_GENERATION.search(kit.template)) and bool(_GENERATION.search(kit.tool_template))
        self.writes_date = "strftime_now" in kit.template
        self._stops = [token for token in self._added if token in kit.stop_tokens]
        self._closings: dict[bool, str] = {}
        """What is added after a last assistant turn, with and without tool calls."""
        self.tail = self._find_tail(kit.eos_token)

    def render(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, generation_prompt: bool = False
    ) -> str:
        """The text of a conversation. Raises RowError when the template fails on it."""
        text = self._run(messages, tools, generation_prompt, marks=False)[0]
        if self._closings and not generation_prompt and messages[-1]["role"] == "assistant":
            text += self._closings[bool(messages[-1].get("tool_calls"))]
        return text

    def render_marked(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None
    ) -> tuple[str, list[CharSpan]]:
        """The text and the character spans that `{% generation %}` marks."""
        return self._run(messages, tools, False, marks=True)

    def turn_end(self, turn: str) -> int | None:
        """Where the terminator ends in a turn's text and whatever the template writes after the last turn.

        None when the turn ends on no token of the template's.
        """
        if turn.endswith(self.tail.text):
            return len(turn) - len(self.tail.text) + self.tail.end
        stripped = turn.rstrip()
        return len(stripped) if any(stripped.endswith(token) for token in self._added) else None

    def without_terminator(self, turn: str) -> str:
        """A turn's text up to its terminator, without the token that it ends on."""
        return next((turn.removesuffix(token) for token in self._added if turn.endswith(token)), turn)

    def _run(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, generation_prompt: bool, marks: bool
    ) -> tuple[str, list[CharSpan]]:
        template = self._tool_template if tools else self._template

        def rendered(messages: list[Message]) -> tuple[str, list[CharSpan]]:
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=generation_prompt,
                **self._variables,
            )
            return texts[0], spans[0] if marks else []

        try:
            try:
                return rendered(list(messages))
            except TypeError:
                if not any(message.get("tool_calls") for message in messages):
                    raise
                return rendered([_with_text_arguments(message) for message in messages])
        except TemplateSyntaxError as error:
            raise CloisterError(
                FailureReason.MODEL_UNSUPPORTED,
                f"The chat template is not valid Jinja: {error.message} (line {error.lineno} of the template). "
                "Correct it, or give another one in model.chatTemplate.",
            ) from error
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as e:
            raise RowError("", f"a conversation on which the chat template fails ({_say(e, template)})",
                             "one that it can render", _TEMPLATE_ACTION) from None  # fmt: skip

    def _find_tail(self, eos_token: str | None) -> Tail:
        for probe in _PROBES:
            try:
                _, found, tail = self.render(probe, None).rpartition(_ANSWER)
            except RowError:
                continue
            if found:
                return self._read_tail(tail)
        if eos_token:
            return Tail(eos_token, len(eos_token), eos_token)
        raise _no_terminator()

    def _read_tail(self, tail: str) -> Tail:
        places = [(tail.index(token), -len(token), token) for token in self._added if token in tail]
        if not places:
            return self._read_closings()
        start, _, terminator = min(places)
        return Tail(tail, start + len(terminator), terminator)

    def _read_closings(self) -> Tail:
        after_answer = self._token_of_next(_PROBES[0], {"role": "user", "content": "a"})
        if after_answer is None:
            raise _no_terminator()
        called: Message = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        after_calls = self._token_of_next([_PROBES[0][0], called], {"role": "tool", "name": "a", "content": "a"})
        self._closings = {False: after_answer, True: after_calls or after_answer}
        return Tail(after_answer, len(after_answer), after_answer)

    def _token_of_next(self, messages: list[Message], following: Message) -> str | None:
        """The stop token that begins `following` where it follows on `messages`."""
        try:
            before, whole = self.render(messages, None), self.render([*messages, following], None)
        except RowError:
            return None
        if not whole.startswith(before):
            return None
        return next((token for token in self._stops if whole.startswith(token, len(before))), None)


def _with_text_arguments(message: Message) -> Message:
    """The message with the arguments of its tool calls as JSON text, which some templates (DeepSeek's) add to text."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_text(call["function"].get("arguments", {}))}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _say(error: BaseException, template: str) -> str:
    """The error's own words only when the template's author wrote them: others may quote the row."""
    words = str(error)
    return words if words and words in template else type(error).__name__


def _no_terminator() -> CloisterError:
    return CloisterError(
        FailureReason.MODEL_UNSUPPORTED,
        "The chat template writes no special token after an assistant message, so a model trained with it would never "
        "learn where to stop. Give a template that ends each assistant turn with one, in model.chatTemplate.",
    )
