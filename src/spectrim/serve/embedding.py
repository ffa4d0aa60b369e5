"""/v1/embeddings: texts as vectors of length 1."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from spectrim.serve.batch import Vector
from spectrim.serve.failures import ApiError, of_fault
from spectrim.serve.fields import EmbeddingRequest
from spectrim.serve.following import ClientLeftError, while_client_waits
from spectrim.serve.scheduler import FullError
from spectrim.serve.served import Served


async def embed(body: EmbeddingRequest, request: Request) -> dict[str, Any] | Response:
    """Return the mean of the last hidden states of each text, scaled to length 1."""
    served: Served = request.app.state.served
    served.check_model(body.model)
    given: Any = body.input
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    texts = [await run_in_threadpool(served.tokens, one, "input") for one in given]
    try:
        vectors = await while_client_waits(request, _vectors(served, texts))
    except ClientLeftError:
        return Response(status_code=499)  # which nobody reads; nginx's number for this
    count = sum(len(tokens) for tokens in texts)
    served.meters.tokens.labels("embedding").inc(count)
    return {
        "object": "list",
        "model": served.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _coded(vector, body)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


async def _vectors(served: Served, texts: list[tuple[int, ...]]) -> list[Vector]:
    return [await _vector(served, tokens) for tokens in texts]


async def _vector(served: Served, tokens: tuple[int, ...]) -> Vector:
    try:
        work = served.scheduler.call(lambda: served.batch.embed(tokens))
        found: Vector | None = await asyncio.wrap_future(work)
    except FullError as error:
        raise ApiError(
            "too many requests wait already; try again in a moment", status=429
        ) from error
    except Exception as error:
        raise of_fault(error) from error
    if found is None:
        raise ApiError("this form of the model gives no hidden states; serve its folder for them")
    return found / max(float(np.linalg.norm(found)), 1e-12)


def _coded(vector: Vector, body: EmbeddingRequest) -> list[float] | str:
    """Return a vector as numbers, or as the bytes of little-endian fp32 in base64."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
