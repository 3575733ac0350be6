"""POST /v1/embeddings: one vector for each text, by the model's last hidden states."""

import asyncio
import base64
import threading
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from farflung.apps.http.engine import Engine
from farflung.apps.http.errors import ApiError
from farflung.apps.http.hanging_up import until_hang_up
from farflung.apps.http.metrics import Metrics
from farflung.apps.http.prompts import completion_prompt
from farflung.apps.http.schema import Tokens
from farflung.model.embedding import Pooling

TEXTS_MAX = 2048


class EmbeddingRequest(BaseModel):
    """Body of POST /v1/embeddings."""

    model: str
    input: str | Tokens | list[str] | list[Tokens]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    pooling: Pooling = "mean"
    """Not OpenAI's: which states make the vector."""

    @model_validator(mode="after")
    def _can_be_honoured(self) -> "EmbeddingRequest":
        if not self.texts:
            raise ValueError("input is empty")
        if len(self.texts) > TEXTS_MAX:
            raise ValueError(f"at most {TEXTS_MAX} texts are allowed in one request")
        return self

    @property
    def texts(self) -> list[str | list[int]]:
        """Each text of the request, as text or as tokens."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [text for text in self.input if not isinstance(text, int)]


async def respond(engine: Engine, asked: EmbeddingRequest, request: Request, metrics: Metrics) -> Response:
    """Vectors of length 1, in the order of the texts."""
    texts = await asyncio.to_thread(lambda: [_tokens(engine, text) for text in asked.texts])
    vectors_NH = await until_hang_up(request, _embedded(engine, texts, asked, metrics))
    data = [
        {"object": "embedding", "index": index, "embedding": _spelled(vector_H, asked.encoding_format)}
        for index, vector_H in enumerate(vectors_NH)
    ]
    num_tokens = sum(len(text) for text in texts)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return JSONResponse({"object": "list", "data": data, "model": engine.name, "usage": usage})


def _tokens(engine: Engine, text: str | list[int]) -> tuple[int, ...]:
    tokens = completion_prompt(engine, text)
    if len(tokens) > engine.context_length_max:
        raise ApiError(
            400,
            f"A text has {len(tokens)} tokens, but {engine.name} takes at most {engine.context_length_max}: cut it.",
            param="input",
            code="context_length_exceeded",
        )
    return tokens


async def _embedded(
    engine: Engine, texts: list[tuple[int, ...]], asked: EmbeddingRequest, metrics: Metrics
) -> torch.Tensor:
    cancelled = threading.Event()
    try:
        async with engine.turn(metrics):
            vectors_NH = await asyncio.to_thread(engine.embed, texts, asked.pooling, cancelled.is_set)
    finally:
        cancelled.set()
    hidden_size = vectors_NH.shape[1]
    if asked.dimensions not in (None, hidden_size):
        sentence = f"The vectors of {engine.name} have {hidden_size} dimensions and are not cut: leave dimensions out."
        raise ApiError(400, sentence, param="dimensions")
    metrics.count_prompt_tokens(engine.name, sum(len(text) for text in texts))
    return vectors_NH


def _spelled(vector_H: torch.Tensor, encoding_format: str) -> Any:
    if encoding_format == "float":
        return vector_H.tolist()
    return base64.b64encode(vector_H.numpy().astype("<f4").tobytes()).decode()
