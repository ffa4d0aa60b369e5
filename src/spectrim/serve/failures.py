"""What is answered when a request cannot be: OpenAI's shape of an error, in every case."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from spectrim.serve.scheduler import FullError, StoppedError

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    429: "queue_full",
    503: "unavailable",
}
_RETRIED = (429, 503)

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def body(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else _KINDS.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}
    return {"error": error}


def response(error: ApiError) -> JSONResponse:
    """Return an error as an answer over HTTP."""
    headers = {"Retry-After": "1"} if error.status in _RETRIED else None
    return JSONResponse(
        body(str(error), error.status, error.param, error.code), error.status, headers
    )


def of_fault(error: Exception) -> ApiError:
    """Return what to tell of an error; the log has those of our own in full."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, FullError):
        return ApiError("too many requests wait already; try again in a moment", status=429)
    if isinstance(error, StoppedError):
        return ApiError("the server has stopped; try again when it is back", status=503)
    logger.error("a request failed", exc_info=error)
    return ApiError("the model failed on this request; see the server's log", status=500)


def install(app: FastAPI) -> None:
    """Have every error of an application answered in OpenAI's shape."""

    @app.exception_handler(ApiError)
    @app.exception_handler(FullError)
    @app.exception_handler(StoppedError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return response(of_fault(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return response(_of_fields(error.errors()))

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> JSONResponse:
        said = {
            404: f"there is no {request.url.path}; see /v1/models, /v1/chat/completions, "
            "/v1/completions, /v1/embeddings, /health and /metrics",
            405: f"{request.url.path} takes no {request.method}",
            413: "the body is too large; send less text",  # as it turns out where it does not say
        }
        message = said.get(error.status_code, str(error.detail))
        found = response(ApiError(message, status=error.status_code))
        found.headers.update(error.headers or {})
        return found

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return response(ApiError("this is a fault of the server; see its log", status=500))


def _of_fields(found: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error for the first thing that pydantic has found wrong in a body."""
    # Where several kinds of value would do, it lists all that a value is not, before what is wrong.
    first = next((one for one in found if not one["type"].endswith("_type")), found[0])
    kind = first["type"]
    where = [str(part) for part in first["loc"][1:] if not _names_a_kind(part)]
    param = ".".join(where) or None
    if kind == "json_invalid":
        return ApiError("the body is not JSON", code="invalid_json")
    if kind == "extra_forbidden":
        param = ".".join([*where, *_last(first["loc"][-1])])
        return ApiError(
            f"Unrecognized request argument supplied: {param}", param=param, code="unknown_argument"
        )
    said = str(first["msg"]).removeprefix("Value error, ")
    if param is None:
        return ApiError("the body is to be a JSON object, sent as application/json")
    return ApiError(f"'{param}' is wrong: {said}", param=param, code=_code(kind))


def _names_a_kind(part: object) -> bool:
    """Return whether a part of a place names a kind of value, as for unions, and no field."""
    return isinstance(part, str) and (part in ("str", "Part") or not part.isidentifier())


def _last(part: object) -> tuple[str, ...]:
    """Return the end of a place that `_names_a_kind` has left out: a client's key may be anything.

    Where it is long, its beginning; halves of letters are replaced, as no JSON holds them.
    """
    return (str(part)[:100].encode(errors="replace").decode(),) if _names_a_kind(part) else ()


def _code(kind: str) -> str:
    if kind == "missing":
        return "missing_required_parameter"
    return "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
