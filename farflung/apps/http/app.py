"""The HTTP application: `build_app` joins engines, keys, limits and metrics."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from farflung.apps.http import embeddings, errors
from farflung.apps.http.chat import ChatAnswers
from farflung.apps.http.chat_schema import ChatRequest
from farflung.apps.http.completions import CompletionAnswers
from farflung.apps.http.embeddings import EmbeddingRequest
from farflung.apps.http.engine import Engine
from farflung.apps.http.errors import ApiError
from farflung.apps.http.guards import CountRequests, LimitBody, RequireKey
from farflung.apps.http.metrics import Metrics
from farflung.apps.http.resuming import StreamLimits, Streams
from farflung.apps.http.schema import CompletionRequest

BODY_BYTES_MAX = 8 << 20


def build_app(
    engines: Mapping[str, Engine],
    *,
    api_keys: Sequence[str] = (),
    body_bytes_max: int = BODY_BYTES_MAX,
    metrics: Metrics | None = None,
    stream_limits: StreamLimits | None = None,
) -> FastAPI:
    """An application that serves `engines` by name. With `api_keys`, /v1 needs one of them; nothing else does."""
    metrics = metrics or Metrics()
    streams = Streams(stream_limits)
    for engine in engines.values():
        engine.spare = partial(streams.spare, engine.name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        streams.close()
        for engine in engines.values():
            engine.cancel_all()

    app = FastAPI(title="Farflung", lifespan=lifespan, docs_url=None, redoc_url=None)
    errors.install(app)
    _add_models(app, engines)
    _add_answers(app, engines, metrics, streams)
    _add_status(app, engines, metrics)
    # The one added last sees a request first.
    app.add_middleware(LimitBody, num_bytes_max=body_bytes_max)
    app.add_middleware(RequireKey, api_keys=api_keys)
    app.add_middleware(CountRequests, metrics=metrics)
    return app


def _find(engines: Mapping[str, Engine], name: str) -> Engine:
    if name not in engines:
        served = ", ".join(sorted(engines))
        raise ApiError(404, f"There is no model {name} here; there is {served}.", param="model", code="model_not_found")
    return engines[name]


def _add_models(app: FastAPI, engines: Mapping[str, Engine]) -> None:
    def describe(engine: Engine) -> dict[str, Any]:
        return {
            "id": engine.name,
            "object": "model",
            "created": engine.created_seconds,
            "owned_by": "farflung",
            "max_model_len": engine.context_length_max,
        }

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(engine) for engine in engines.values()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return describe(_find(engines, name))


def _add_answers(app: FastAPI, engines: Mapping[str, Engine], metrics: Metrics, streams: Streams) -> None:
    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        engine = _find(engines, asked.model)
        place = streams.place_of(request, asked, engine.weights)
        return await ChatAnswers(engine, asked, metrics, place).respond(request, streams)

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        engine = _find(engines, asked.model)
        place = streams.place_of(request, asked, engine.weights)
        return await CompletionAnswers(engine, asked, metrics, place).respond(request, streams)

    @app.post("/v1/embeddings")
    async def embed(asked: EmbeddingRequest, request: Request) -> Response:
        return await embeddings.respond(_find(engines, asked.model), asked, request, metrics)

    @app.get("/v1/streams/{name}")
    async def resume(name: str, request: Request) -> Response:
        return await streams.resume(request, name)

    @app.delete("/v1/streams/{name}")
    async def end(name: str, request: Request) -> dict[str, Any]:
        streams.end(request, name)
        return {"id": name, "object": "stream.deleted", "deleted": True}


def _add_status(app: FastAPI, engines: Mapping[str, Engine], metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        reasons = {name: reason for name, engine in engines.items() if (reason := engine.why_unavailable())}
        status = "unavailable" if reasons else "ok"
        body = {"status": status, "models": sorted(engines), "reasons": reasons}
        return JSONResponse(body, 503 if reasons else 200)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
