"""Real chat templates with what must be trained of a conversation in each: TRL keeps the models' own, byte for byte."""

# ruff: noqa: RUF001 - DeepSeek's tokens have a full-width bar

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from support.prepared import chat, template

TURNS = chat("Hi é", " Hello 😀 \n", "How? ", "Bye")
CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
CALLS: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "tool_call_id": "a1b2c3d4e", "content": "2"},
        {"role": "assistant", "content": "Two"},
    ]
}


def models_own(name: str) -> str:
    """The template that a model came with, as the package trl has it (trl/chat_templates, with a README of sources)."""
    spec = find_spec("trl")
    assert spec is not None and spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()


@dataclass(frozen=True)
class ChatCase:
    """A template, its tokenizer's special tokens, and the texts that are trained."""

    template: str
    special: tuple[str, ...]
    eos: str
    turns: tuple[str, ...]
    """Of TURNS, with and without a system prompt before it."""
    begins: str
    """How TURNS begins, up to the first user's text."""
    stop: str
    bos: str | None = None
    system: bool = True
    """Whether it takes a system prompt."""
    calls: tuple[str, ...] | None = None
    """Of CALLS; None where the template writes no tool calls."""
    tools: bool = True
    """Whether it writes the definitions of tools."""
    stops: tuple[str, ...] = ()
    """Of generation_config.json, for a template that ends no turn: one of them is added to a conversation."""


KEPT = " Hello 😀 \n"
STRIPPED = "Hello 😀"


def ended(first: str, second: str, stop: str) -> tuple[str, ...]:
    return (first + stop, second + stop)


LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|end_of_text|>")
LLAMA_DATE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
LLAMA_CALLS = ('{"name": "add", "parameters": {"a": 1}}<|eot_id|>', "Two<|eot_id|>")
PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN_CALLS = ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>', "Two<|im_end|>")
THOUGHT = "<think>\n\n</think>\n\n"
GEMMA = ("<start_of_turn>", "<end_of_turn>", "<eos>")
DEEPSEEK = (
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>"),
    *("<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
)
DEEPSEEK_BEGIN = "<｜begin▁of▁sentence｜>"
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
GPT_OSS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>")
GLM = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>", "[gMASK]", "<sop>")
GLM_CALLS = (
    "\n<think></think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>",
    "\n<think></think>\nTwo<|user|>",
)
MISTRAL = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]")

CORPUS: dict[str, ChatCase] = {
    "ChatML": ChatCase(
        template("chatml"), CHATML, "<|im_end|>", ended(KEPT, "Bye", "<|im_end|>"),
        "<|im_start|>user\nHi", "<|im_end|>",
    ),
    "Llama 3": ChatCase(
        models_own("llama3"), LLAMA, "<|eot_id|>", ended(STRIPPED, "Bye", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi", "<|eot_id|>", "<|begin_of_text|>",
    ),
    "Llama 3.1": ChatCase(
        models_own("llama3_1"), LLAMA, "<|eot_id|>", ended(STRIPPED, "Bye", "<|eot_id|>"),
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{LLAMA_DATE}<|eot_id|>", "<|eot_id|>",
        "<|begin_of_text|>", calls=LLAMA_CALLS,
    ),
    "Mistral 0.3": ChatCase(
        template("mistral_v3"), MISTRAL, "</s>", ended(f" {STRIPPED}", " Bye", "</s>"),
        "<s>[INST] Hi", "</s>", "<s>", system=False,
        calls=('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "a1b2c3d4e"}]</s>', " Two</s>"),
    ),
    "Mistral Large 2411": ChatCase(
        template("mistral_v7"), (*MISTRAL, "[SYSTEM_PROMPT]"), "</s>", ended(f" {KEPT}", " Bye", "</s>"),
        "<s>[INST] Hi", "</s>", "<s>",
    ),
    "Phi-3": ChatCase(
        models_own("phi3"), PHI3, "<|endoftext|>", ended(KEPT, "Bye", "<|end|>"), "<|user|>\nHi", "<|end|>",
    ),
    "Phi-3.5": ChatCase(
        models_own("phi3_5"), PHI3, "<|endoftext|>", ended(KEPT, "Bye", "<|end|>"), "<|user|>\nHi", "<|end|>",
    ),
    "Phi-3, TRL's marks": ChatCase(
        models_own("phi3_training"), PHI3, "<|endoftext|>", ended(KEPT, "Bye", "<|end|>"), "<|user|>\nHi", "<|end|>",
    ),
    "Phi-4": ChatCase(
        template("phi4"), (*CHATML, "<|im_sep|>"), "<|im_end|>", ended(KEPT, "Bye", "<|im_end|>"),
        "<|im_start|>user<|im_sep|>Hi", "<|im_end|>",
    ),
    "Phi-4-mini": ChatCase(
        template("phi4_mini"), (*PHI3, "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
        "<|endoftext|>", ended(KEPT, "Bye", "<|end|>"), "<|user|>Hi", "<|end|>",
        calls=('<|tool_call|>{"name": "add", "arguments": {"a": 1}}<|/tool_call|><|end|>', "Two<|end|>"),
    ),
    "Qwen 2.5": ChatCase(
        models_own("qwen2_5"), CHATML, "<|im_end|>", ended(KEPT, "Bye", "<|im_end|>"),
        f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\nHi", "<|im_end|>", calls=QWEN_CALLS,
    ),
    "Qwen 3": ChatCase(
        models_own("qwen3"), CHATML, "<|im_end|>", ended(THOUGHT + KEPT, f"{THOUGHT}Bye", "<|im_end|>"),
        "<|im_start|>user\nHi", "<|im_end|>", calls=tuple(THOUGHT + call for call in QWEN_CALLS),
    ),
    "Qwen 3, TRL's marks": ChatCase(
        models_own("qwen3_training"), CHATML, "<|im_end|>", ended(THOUGHT + KEPT, f"{THOUGHT}Bye", "<|im_end|>"),
        "<|im_start|>user\nHi", "<|im_end|>", calls=tuple(THOUGHT + call for call in QWEN_CALLS),
    ),
    "Qwen 3 Instruct 2507": ChatCase(
        models_own("qwen3_instruct_2507"), CHATML, "<|im_end|>", ended(KEPT, "Bye", "<|im_end|>"),
        "<|im_start|>user\nHi", "<|im_end|>", calls=QWEN_CALLS,
    ),
    "DeepSeek-V3": ChatCase(
        models_own("deepseekv3").replace("'<｜Assistant｜><think>\\n'", "'<｜Assistant｜>'"), DEEPSEEK, DEEPSEEK_END,
        ended(KEPT, "Bye", DEEPSEEK_END), f"{DEEPSEEK_BEGIN}<｜User｜>Hi", DEEPSEEK_END, DEEPSEEK_BEGIN,
        calls=ended(DEEPSEEK_CALL, "Two", DEEPSEEK_END), tools=False,
    ),
    "OLMo 2": ChatCase(
        template("olmo2"), ("<|endoftext|>",), "<|endoftext|>", ended(KEPT, "Bye", "<|endoftext|>"),
        "<|endoftext|><|user|>\nHi", "<|endoftext|>", "<|endoftext|>",
    ),
    "Gemma": ChatCase(
        models_own("gemma"), GEMMA, "<eos>", ended(STRIPPED, "Bye", "<end_of_turn>"),
        "<bos><start_of_turn>user\nHi", "<end_of_turn>", "<bos>", system=False,
    ),
    "Gemma 3": ChatCase(
        models_own("gemma3"), GEMMA, "<eos>", ended(STRIPPED, "Bye", "<end_of_turn>"),
        "<bos><start_of_turn>user\nHi", "<end_of_turn>", "<bos>",
    ),
    "gpt-oss": ChatCase(
        models_own("gptoss"), GPT_OSS, "<|return|>",
        ended(f"<|channel|>final<|message|>{KEPT}", "<|channel|>final<|message|>Bye", "<|return|>"),
        "<|start|>system<|message|>You are ChatGPT", "<|return|>",
        calls=(
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>',
            "<|channel|>final<|message|>Two<|return|>",
        ),
    ),
    "GLM-4.5": ChatCase(
        models_own("glm4moe"), GLM, "<|endoftext|>",
        ended(f"\n<think></think>\n{STRIPPED}", "\n<think></think>\nBye", "<|user|>"),
        "[gMASK]<sop><|user|>\nHi", "<|user|>", calls=GLM_CALLS, stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    "GLM-4.5, TRL's marks": ChatCase(
        models_own("glm4moe_training"), GLM, "<|endoftext|>",
        ended(f"\n<think></think>\n{STRIPPED}", "\n<think></think>\nBye", "<|user|>"),
        "[gMASK]<sop><|user|>\nHi", "<|user|>",
        calls=GLM_CALLS,
    ),
}  # fmt: skip
