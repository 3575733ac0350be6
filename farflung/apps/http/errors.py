"""What goes wrong over HTTP, in the shape that OpenAI's clients read: one sentence, a type, the field it is about."""

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from farflung.world.errors import FarflungError, Refused

RETRY_AFTER_SECONDS = 5.0
"""When asking again may help after machines were lost: about what a replacement needs to announce itself."""


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    @property
    def body(self) -> dict[str, object]:
        """The JSON object that OpenAI's clients expect."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer, with Retry-After where asking again may help."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_seconds)))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "service_unavailable"}


def from_failure(error: ValueError | FarflungError) -> ApiError:
    """How a failure below the interface is told: the request's fault 400, full or broken machines 503."""
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    if isinstance(error, Refused):
        return ApiError(503, error.reason, code="refused", retry_after_seconds=RETRY_AFTER_SECONDS)
    return ApiError(503, str(error), code="unreachable", retry_after_seconds=RETRY_AFTER_SECONDS)


def install(app: FastAPI) -> None:
    """Let every error of `app` leave in the one shape."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _explain(error).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        path = f"{request.method} {request.url.path}"
        sentence = {404: f"There is no {path}.", 405: f"{path} is not allowed."}.get(error.status_code, error.detail)
        return ApiError(error.status_code, sentence).response()

    @app.exception_handler(Exception)
    async def _ours(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "The server failed; its log says why.").response()


def _explain(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return ApiError(400, f"The body is not JSON: {reason} at character {place[0] if place else 0}.")
    sentence = first["msg"].removeprefix("Value error, ")
    if not place and first["type"] == "value_error":
        return ApiError(400, sentence)
    if not place:
        return ApiError(400, "The body must be a JSON object sent as application/json.")
    return ApiError(400, f"{'.'.join(place)}: {sentence}", param=place[0])
