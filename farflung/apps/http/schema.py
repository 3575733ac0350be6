"""What clients may ask, as OpenAI's documentation names it, and what it means for a generator.

Fields of OpenAI that change nothing here (`user`, `store`, ...) are taken and passed over; fields that would change the
answer but cannot be honoured are refused.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator, model_validator

from farflung.model.sample import Sampling

PROMPTS_MAX = 256
"""Prompts in one completion request."""
ANSWERS_MAX = 64
"""`n` of one request."""
STOP_STRINGS_MAX = 16
STOP_STRING_LENGTH_MAX = 1000

Tokens = list[Annotated[int, Field(ge=0)]]


class StreamOptions(BaseModel):
    """How a streamed answer ends."""

    include_usage: bool = False


class AnswerRequest(BaseModel):
    """What both kinds of request share."""

    model: str
    n: int = Field(default=1, ge=1, le=ANSWERS_MAX)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    presence_penalty: float = Field(default=0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        strings = [stop] if isinstance(stop, str) else stop or []
        if len(strings) > STOP_STRINGS_MAX or any(len(string) > STOP_STRING_LENGTH_MAX for string in strings):
            raise ValueError(
                f"at most {STOP_STRINGS_MAX} stop strings of at most {STOP_STRING_LENGTH_MAX} characters are allowed"
            )
        return stop

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, defaults: Sampling) -> Sampling:
        """How to choose tokens; what the request leaves open is as the model's makers advise."""

        def or_default(name: str) -> Any:
            value = getattr(self, name)
            return getattr(defaults, name) if value is None else value

        return Sampling(
            temperature=or_default("temperature"),
            top_k=max(0, or_default("top_k")),  # -1 means all tokens to many clients
            top_p=or_default("top_p"),
            min_p=or_default("min_p"),
            repetition_penalty=or_default("repetition_penalty"),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or {},
        )


class CompletionRequest(AnswerRequest):
    """Body of POST /v1/completions."""

    prompt: str | Tokens | list[str] | list[Tokens]
    max_tokens: int | None = Field(default=16, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _can_be_honoured(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of is not supported; ask for n answers and choose among them")
        if self.suffix:
            raise ValueError("suffix is not supported; put all text into the prompt")
        if not self.prompts:
            raise ValueError("prompt is empty")
        if len(self.prompts) > PROMPTS_MAX:
            raise ValueError(f"at most {PROMPTS_MAX} prompts are allowed in one request")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens of 0 makes sense only with echo")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt of the request, as text or as tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]
