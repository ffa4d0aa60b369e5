"""/v1/embeddings: texts as vectors of length 1."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from spectrim.serve.batch import Vector
from spectrim.serve.failures import ApiError, of_fault
from spectrim.serve.fields import EmbeddingRequest
from spectrim.serve.following import ClientLeftError, while_client_waits
from spectrim.serve.served import Served


async def embed(body: EmbeddingRequest, request: Request) -> dict[str, Any] | Response:
    """Return the mean of the last hidden states of each text, scaled to length 1."""
    served: Served = request.app.state.served
    served.check_model(body.model)
    given: Any = body.input
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    try:
        vectors, count = await while_client_waits(request, _embedded(served, given))
    except ClientLeftError:
        return Response(status_code=499)  # which nobody reads; nginx's number for this
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


async def _embedded(served: Served, given: Sequence[Any]) -> tuple[list[Vector], int]:
    """Return the vectors of texts, and how many tokens these have together."""
    vectors, count = [], 0
    with served.scheduler.place():
        for one in given:
            tokens = await served.aside(partial(served.tokens, one, "input"))
            vectors.append(await _vector(served, tokens))
            count += len(tokens)
    return vectors, count


async def _vector(served: Served, tokens: tuple[int, ...]) -> Vector:
    found: Vector | None = None
    means = served.batch.embed(tokens)
    try:
        # Piece by piece, so that nobody's answer waits for a long text.
        while (mean := await _next(served, means)) is not None:
            found = mean
    except Exception as error:
        raise of_fault(error) from error
    if found is None:
        raise ApiError("this form of the model gives no hidden states; serve its folder for them")
    return found / max(float(np.linalg.norm(found)), 1e-12)


async def _next(served: Served, means: Iterator[Vector]) -> Vector | None:
    return await asyncio.wrap_future(served.scheduler.call(lambda: next(means, None)))


def _coded(vector: Vector, body: EmbeddingRequest) -> list[float] | str:
    """Return a vector as numbers, or as the bytes of little-endian fp32 in base64."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
