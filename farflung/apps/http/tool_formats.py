"""How models write tool calls: found out from their chat template, read by transformers' parser of responses."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from farflung.apps.http.errors import ApiError
from farflung.apps.http.guiding import json_rule

Json = dict[str, Any]

CALLS_MAX = 16
"""In one answer that has to call tools."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write them."""

    response: Json
    """The response template of transformers: which parts of an answer are calls."""
    begin: str | None = None
    """Before each call, as it has to be written; None: answers cannot be kept to this format."""
    end: str = ""
    arguments: str = "arguments"
    """The key of a call's arguments."""
    around: tuple[str, str] = ("", "")
    """What stands before and after a call's JSON, for what turns out to be none."""
    reads_prompt: bool = False
    """Whether the prompt may have begun a part of the answer."""
    is_repeatable: bool = True
    """Whether an answer may have several."""

    def grammar(self, tools: Sequence[Json], *, is_parallel: bool, is_free: bool) -> str:
        """Answers that call at least one of the tools and say nothing else, or, `is_free`, text that may have calls.

        Raises:
            ApiError: 400, answers cannot be kept to this format.
        """
        if self.begin is None:
            sentence = (
                "This model writes tool calls in a format that answers cannot be kept to: "
                "ask with tool_choice auto and with tools that are not strict."
            )
            raise ApiError(400, sentence, param="tool_choice")
        num_more = CALLS_MAX - 1 if is_parallel and self.is_repeatable else 0
        more = f' ("\\n" BEGIN call){{0,{num_more}}}' if num_more else ""
        if self.begin:
            free = f"TEXT | text_and_begin call{more}"
            start = f"start: {free if is_free else f'BEGIN call{more}'}\nBEGIN: {json.dumps(self.begin)}\n"
            start += "text_and_begin[lazy]: /(.|\\n)*/ BEGIN\n" if is_free else ""
        else:
            start = f"start: {'TEXT | call' if is_free else 'call'}\n"
        text = r"TEXT: /(.|\n)*/" if self.begin else r"TEXT: /([^{](.|\n)*)?/"
        start += f"{text}\n" if is_free else ""
        end = f" {json.dumps(self.end)}" if self.end else ""
        return f"{start}call: {json_rule({'anyOf': [self._call(tool) for tool in tools]})}{end}\n"

    def shown_tokens(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """Special tokens that are part of the format."""
        described = str(self.response) + str(self.response).replace("\\", "")
        return frozenset(
            token for token in tokenizer.all_special_ids if str(tokenizer.convert_ids_to_tokens(token)) in described
        )

    def _call(self, tool: Json) -> Json:
        return {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                self.arguments: tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", self.arguments],
            "additionalProperties": False,
        }


NO_ANCHOR = "<|assistant|>"
"""Templates must name what begins an answer in a prompt; these formats are read without their prompt."""

HERMES = ToolFormat(
    {
        "start_anchor": NO_ANCHOR,
        "fields": {
            "tool_calls": {
                "open_pattern": r"\s*<tool_call>",
                "close": "</tool_call>",
                "repeats": True,
                "content": "text",
            },
            "content": {"content": "text"},
        },
    },
    begin="<tool_call>\n",
    end="\n</tool_call>",
    around=("<tool_call>", "</tool_call>"),
)
"""Hermes, Qwen 2.5 and 3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

XML = ToolFormat(
    {
        "start_anchor": NO_ANCHOR,
        "fields": {
            "tool_calls": {
                "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
                "close_pattern": r"</function>\s*</tool_call>",
                "repeats": True,
                "content": "xml-inline",
                "content_args": {
                    "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>",
                },
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"content": "text"},
        },
    }
)
"""Qwen 3.5 and Qwen 3 Coder: <function=NAME><parameter=KEY>VALUE</parameter></function>."""

LLAMA = ToolFormat(
    {
        "start_anchor": NO_ANCHOR,
        "fields": {
            "tool_calls": {
                "open_pattern": r"\A\s*(?:<\|python_tag\|>)?\s*(?=\{)",
                "content": "text",
            },
            "content": {"content": "text"},
        },
    },
    begin="",
    arguments="parameters",
    is_repeatable=False,
)
"""Llama 3: {"name": ..., "parameters": {...}} and nothing else."""

MISTRAL = ToolFormat(
    {
        "start_anchor": NO_ANCHOR,
        "fields": {
            "tool_calls": {
                "open": "[TOOL_CALLS]",
                "content": "text",
            },
            "content": {"content": "text"},
        },
    },
    around=("[TOOL_CALLS]", ""),
)
"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}]."""


def format_of(tokenizer: PreTrainedTokenizerBase) -> ToolFormat | None:
    """The format that a model's tokenizer says or its chat template shows; None if it is none of these."""
    own = getattr(tokenizer, "response_template", None)
    template = str(tokenizer.chat_template)
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if own is not None:
        return ToolFormat(own, reads_prompt=True)
    if "<function=" in template and "<tool_call>" in template:
        return XML
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if '"parameters": ' in template and "ipython" in template.lower():
        return LLAMA
    return None
