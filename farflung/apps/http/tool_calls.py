"""Tool calls in an answer, found as its text comes in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.chat_parsing import ResponseParser

from farflung.apps.http.tool_formats import ToolFormat

Json = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names in tokenizers' own templates."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, complete."""

    id: str
    name: str
    arguments: str
    """JSON."""

    def spelled(self) -> Json:
        """As OpenAI spells it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(slots=True)
class Found:
    """What some text brought."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list[ToolCall])

    def add(self, other: "Found") -> None:
        """What came after it."""
        self.content += other.content
        self.reasoning += other.reasoning
        self.calls += other.calls


class ToolReader:
    """Parts one answer into what is said and what is called. What looks like a call and is none is said."""

    def __init__(self, format: ToolFormat, prompt: str, tools: Sequence[Json], name: str) -> None:
        """`name`: of the answer, for the ids of its calls."""
        prefix = prompt if format.reads_prompt else ""
        self._parser = ResponseParser(format.response, prefix=prefix, tools=list(tools))
        self._format = format
        self._name = name
        self._is_broken = False
        self.num_calls = 0

    def push(self, text: str) -> Found:
        """Take more text."""
        return self._read(text, is_last=False)

    def finish(self) -> Found:
        """What is still held, now that no more text comes."""
        return self._read("", is_last=True)

    def _read(self, text: str, *, is_last: bool) -> Found:
        if self._is_broken:
            return Found(content=text)
        found = Found()
        try:
            events = self._parser.finalize()[1] if is_last else self._parser.feed(text)
        except ValueError:  # what the model wrote is not what its own tokenizer says
            self._is_broken = True
            return Found(content=text)
        for event in events:
            kind, name = event["type"], event.get("field")
            if kind == "region_chunk" and name == "content":
                found.content += event["text"]
            elif kind == "region_chunk" and name in REASONING_FIELDS:
                found.reasoning += event["text"]
            elif kind == "region_close" and name == "tool_calls":
                self._take(event["value"], found, is_last=is_last)
        return found

    def _take(self, value: object, found: Found, *, is_last: bool) -> None:
        functions = _functions(value)
        if functions is None:
            before, after = self._format.around
            found.content += f"{before}{value}{'' if is_last else after}"
            return
        for name, arguments in functions:
            self.num_calls += 1
            found.calls.append(ToolCall(f"call_{self._name}_{self.num_calls}", name, arguments))


def _functions(value: object) -> list[tuple[str, str]] | None:
    """Name and arguments as JSON of every call; None if these are no calls."""
    try:
        read = json.loads(value) if isinstance(value, str) else value
        entries: list[Any] = read if isinstance(read, list) else [read]
        functions: list[tuple[str, str]] = []
        for entry in entries:
            function = entry.get("function", entry)
            arguments = function["arguments"] if "arguments" in function else function["parameters"]
            spelled = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            functions.append((str(function["name"]), spelled))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return functions
