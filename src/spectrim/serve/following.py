"""An answer as its request waits for it: piece by piece, and given up when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import TypeVar

from fastapi import Request

from spectrim.serve.answer import Answer, Asked, Piece
from spectrim.serve.failures import of_fault
from spectrim.serve.served import Served

Result = TypeVar("Result")
Pieces = asyncio.Queue[Piece | Exception]


class ClientLeftError(Exception):
    """Nobody waits for this answer any more."""


def begun(served: Served, asked: Asked) -> tuple[Answer, Pieces]:
    """Hand a request to the scheduler; return the answer in the making and its pieces.

    Raises:
        StoppedError: no more answers are made.
    """
    loop, pieces = asyncio.get_running_loop(), Pieces()

    def deliver(piece: Piece | Exception) -> None:
        # The loop is closed where the server was made to stop before the answer did.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    answer = Answer(asked, served.batch.decode, served.language.ends, deliver)
    served.scheduler.submit(answer)
    served.meters.tokens.labels("prompt").inc(len(asked.prompt))
    return answer, pieces


async def followed(served: Served, answer: Answer, pieces: Pieces) -> AsyncIterator[Piece]:
    """Yield an answer's pieces; where it is left before the last, its slot is freed.

    Raises:
        ApiError: the model failed.
    """
    start, ended = perf_counter(), False
    try:
        while not ended:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                ended = True
                raise of_fault(piece)
            if piece.tokens == 1:
                served.meters.first_token.observe(perf_counter() - start)
            served.meters.tokens.labels("completion").inc()
            ended = piece.finish is not None
            yield piece
        served.meters.answer.observe(perf_counter() - start)
    finally:
        if not ended:
            served.scheduler.cancel(answer)
            served.meters.cancelled.inc()


async def while_client_waits(request: Request, work: Awaitable[Result]) -> Result:
    """Return what is worked out; the work is cancelled when the client leaves.

    Raises:
        ClientLeftError: it left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _left(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return
