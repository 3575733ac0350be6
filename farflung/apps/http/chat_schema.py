"""What clients may ask in a chat, with its tools and the form of its answer."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from farflung.apps.http.schema import AnswerRequest

TOOLS_MAX = 128


class ContentPart(BaseModel):
    """One part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation; further fields reach the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message with its text parts joined, as chat templates read it."""
        message = self.model_dump(exclude=None if self.tool_calls else {"tool_calls"})
        if isinstance(self.content, list):
            message["content"] = "".join(part.text for part in self.content)
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return message

    @field_validator("tool_calls")
    @classmethod
    def _calls_are_json(cls, calls: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for call in calls or ():
            try:
                is_object = isinstance(json.loads(call["function"]["arguments"]), dict)
            except (KeyError, TypeError, ValueError):
                is_object = False
            if not is_object:
                raise ValueError("function.arguments of each call must be a JSON object, written as a string")
        return calls


class Function(BaseModel):
    """What a tool is called and what it takes."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None


class Tool(BaseModel):
    """Something that the model may call."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it."""
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        described = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": parameters,
        }
        return {"type": "function", "function": described}


class NamedFunction(BaseModel):
    """The name of a tool."""

    name: str


class NamedTool(BaseModel):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    """A schema under a name."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict[str, Any], alias="schema")
    strict: bool | None = None


class TextFormat(BaseModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Some JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(BaseModel):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatRequest(AnswerRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat | None, Field(discriminator="type")] = (
        None
    )
    tools: list[Tool] | None = Field(default=None, max_length=TOOLS_MAX)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    functions: list[Any] | None = None

    @model_validator(mode="after")
    def _can_be_honoured(self) -> "ChatRequest":
        if self.functions:
            raise ValueError("functions are not supported; give them as tools")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and not self.offered_tools:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name}, which is not among the tools")
        if self.offered_tools and self.json_schema is not None:
            raise ValueError("give tools or a response_format of JSON, not both; tool_choice none is without tools")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def num_tokens_max(self) -> int | None:
        """The limit asked for, under its new or its old name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_alternatives(self) -> int | None:
        """Most likely tokens to report at each position; None when no log-probabilities are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that may be called."""
        if self.tool_choice == "none" or not self.tools:
            return []
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name]
        return self.tools

    @property
    def must_call(self) -> bool:
        """Whether the answer has to call a tool."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What the answer has to be; None: any text."""
        match self.response_format:
            case JsonObjectFormat():
                return {"type": "object"}
            case JsonSchemaFormat(json_schema=named):
                return named.schema_
            case _:
                return None
