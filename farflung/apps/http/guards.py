"""What every request passes before it is read: is it counted, is its caller known, is its body small enough."""

import hmac
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farflung.apps.http.errors import ApiError
from farflung.apps.http.metrics import Metrics


class CountRequests:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # Paths that are no route share one label, so that strangers cannot make series without end.
            self._metrics.count_request(getattr(scope.get("route"), "path", "other"), status)


CALLER = "farflung.caller"
"""Key of a request's scope: the number of the API key that it came with."""


class RequireKey:
    """Lets only holders of an API key use /v1, and notes which; with no keys configured, everybody."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._keys or scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        caller = self._known(Request(scope).headers.get("authorization", ""))
        if caller is None:
            sentence = "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'."
            await ApiError(401, sentence, code="invalid_api_key").response()(scope, receive, send)
            return
        scope[CALLER] = caller
        await self._app(scope, receive, send)

    def _known(self, authorization: str) -> int | None:
        scheme, _, given = authorization.partition(" ")
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return matches.index(True) if scheme.lower() == "bearer" and any(matches) else None


class LimitBody:
    """Reads each body up to a limit before anything parses it."""

    def __init__(self, app: ASGIApp, num_bytes_max: int) -> None:
        self._app = app
        self._num_bytes_max = num_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            error = ApiError(413, f"The body is over the limit of {self._num_bytes_max} bytes.", code="body_too_large")
            await error.response()(scope, receive, send)
            return
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None when it is too long."""
        declared = Request(scope).headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._num_bytes_max:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._num_bytes_max:
                return None
            if not message.get("more_body", False):
                return bytes(body)
