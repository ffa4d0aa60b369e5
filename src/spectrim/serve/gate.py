"""What every request passes first: the key, the size that it says it has, and a count."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectrim.serve.failures import ApiError, response
from spectrim.serve.meters import Meters

LARGEST = 4 * 2**20  # bytes of a body: far more text than a context holds
_OPEN = ("/health",)


class Gate:
    """Wraps an application.

    key: what clients have to know, None for all. paths: those that are counted by themselves.
    """

    def __init__(self, app: ASGIApp, key: str | None, meters: Meters, paths: Sequence[str]) -> None:
        self._app, self._key, self._meters = app, key, meters
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or have it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._meters.requests.labels(path, str(message["status"])).inc()
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await response(refusal)(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is not None and path not in _OPEN and not self._knows(headers):
            return ApiError(
                "Incorrect API key provided; send it as 'Authorization: Bearer KEY'", status=401
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST:
            return ApiError(f"a body may have {LARGEST} bytes; send less text", status=413)
        return None

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), str(self._key).encode())
        return scheme.lower() == "bearer" and same
