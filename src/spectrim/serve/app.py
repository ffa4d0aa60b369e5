"""The server's application: its paths and what stands behind each."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp

from spectrim.serve import failures
from spectrim.serve.embedding import embed
from spectrim.serve.failures import ApiError
from spectrim.serve.gate import LARGEST, Gate
from spectrim.serve.generating import chat, complete
from spectrim.serve.served import Served


def application(served: Served, key: str | None = None) -> ASGIApp:
    """Return what answers requests for a model.

    key: what clients have to send as ``Authorization: Bearer KEY``; None asks for none.
    """
    app = FastAPI(openapi_url=None, redirect_slashes=False, max_body_size=LARGEST)
    app.state.served = served
    failures.install(app)
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/embeddings", embed, methods=["POST"], response_model=None)
    for path, told in (
        ("/v1/models", models), ("/v1/models/{name:path}", model),
        ("/health", health), ("/metrics", metrics),
    ):  # fmt: skip
        app.add_api_route(path, told, methods=["GET", "HEAD"], response_model=None)
    paths = [str(getattr(route, "path", "")) for route in app.routes]
    return Gate(app, key, served.meters, paths)


async def models(request: Request) -> dict[str, Any]:
    """List the one model that is served."""
    return {"object": "list", "data": [_described(request.app.state.served)]}


async def model(name: str, request: Request) -> dict[str, Any]:
    """Describe the model."""
    request.app.state.served.check_model(name)
    return _described(request.app.state.served)


async def health(request: Request) -> dict[str, Any]:
    """Say that requests are taken, and how many are answered at the same time.

    Raises:
        ApiError: they are not: the server is told to stop, or has to be started anew.
    """
    served: Served = request.app.state.served
    if not served.scheduler.works:
        raise ApiError("the server takes no more requests; see its log", status=503)
    return {"status": "ok", "slots": served.batch.slots}


async def metrics(request: Request) -> Response:
    """Return counts and times in Prometheus's form."""
    return Response(request.app.state.served.meters.text(), media_type=CONTENT_TYPE_LATEST)


def _described(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "spectrim",
        "max_model_len": served.batch.context,
    }
