"""/v1/chat/completions and /v1/completions: whole answers and streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from spectrim.serve import failures
from spectrim.serve.answer import Answer, Asked, Piece
from spectrim.serve.bodies import Form
from spectrim.serve.failures import ApiError
from spectrim.serve.fields import ChatRequest, CompletionRequest, Message
from spectrim.serve.following import ClientLeftError, Pieces, begun, followed, while_client_waits
from spectrim.serve.language import ChatError, chat_text
from spectrim.serve.sampling import Sampling
from spectrim.serve.served import Served

_COMPLETION = 16  # tokens of a completion that does not say how many: OpenAI's number


async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a chat."""
    served: Served = request.app.state.served
    served.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    with served.scheduler.place():
        prompt = await served.aside(lambda: _chat_tokens(served, body.messages))
        most = body.max_completion_tokens or body.max_tokens
        asked = _asked(served, body, prompt, most or served.batch.context - len(prompt), logprobs)
        answer, pieces = begun(served, asked)
    return await _answer(served, answer, pieces, body, request)


async def complete(body: CompletionRequest, request: Request) -> Response:
    """Go on with a text."""
    served: Served = request.app.state.served
    served.check_model(body.model)
    given: Any = body.prompt
    if isinstance(given, list) and not isinstance(given[0], int):
        given = given[0]
    with served.scheduler.place():
        prompt = await served.aside(lambda: served.tokens(given, "prompt"))
        most = body.max_tokens or min(_COMPLETION, served.batch.context - len(prompt))
        answer, pieces = begun(served, _asked(served, body, prompt, most, body.logprobs))
    return await _answer(served, answer, pieces, body, request)


def _chat_tokens(served: Served, messages: list[Message]) -> tuple[int, ...]:
    turns = [
        {"role": one.role, "content": chat_text([part.model_dump() for part in one.content]
         if isinstance(one.content, list) else one.content)}
        for one in messages
    ]  # fmt: skip
    try:
        text = served.language.chat(turns)
    except ChatError as error:
        raise ApiError(str(error), param="messages") from error
    return served.tokens(text, "messages", begin=False)  # the template has what begins a text


def _asked(
    served: Served, body: ChatRequest | CompletionRequest, prompt: tuple[int, ...], most: int,
    logprobs: int | None,
) -> Asked:  # fmt: skip
    if body.stream_options is not None and not body.stream:
        raise ApiError("'stream_options' needs 'stream' to be true", param="stream_options")
    context = served.batch.context
    if len(prompt) + most > context:
        raise ApiError(
            f"This model's maximum context length is {context} tokens; the prompt has "
            f"{len(prompt)} and {most} are asked; shorten one of them",
            param="max_tokens", code="context_length_exceeded",
        )  # fmt: skip
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else float(body.temperature),
        top_p=1.0 if body.top_p is None else float(body.top_p),
        seed=body.seed,
    )
    return Asked(prompt, most, sampling, body.stops, logprobs)


async def _answer(
    served: Served,
    answer: Answer,
    pieces: Pieces,
    body: ChatRequest | CompletionRequest,
    request: Request,
) -> Response:
    asked, chats = answer.asked, isinstance(body, ChatRequest)
    form = Form(chats, served.name, served.batch.decode, likeliest=bool(asked.logprobs))
    if body.stream:
        told = body.stream_options is not None and body.stream_options.include_usage
        prompt = len(asked.prompt) if told else None
        events = _events(served, answer, pieces, form, prompt)
        return _Stream(events, lambda: served.scheduler.cancel(answer))
    found = followed(served, answer, pieces)
    try:
        whole = await while_client_waits(request, _collected(found))
    except ClientLeftError:
        return Response(status_code=499)  # which nobody reads; nginx's number for this
    return JSONResponse(form.whole(whole, len(asked.prompt)))


async def _collected(found: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in found]


async def _events(
    served: Served,
    answer: Answer,
    pieces: Pieces,
    form: Form,
    prompt: int | None,
) -> AsyncIterator[str]:
    """Yield server-sent events; prompt: its tokens, where the usage is told at the end."""
    before, count = "", 0
    try:
        if (first := form.first()) is not None:
            yield _event(first, prompt)
        async for piece in followed(served, answer, pieces):
            for chunk in form.chunks(piece, before):
                yield _event(chunk, prompt)
            before, count = before + piece.text, piece.tokens
        if prompt is not None:
            yield _event(form.last(prompt, count), None)
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(failures.body(str(error), error.status, error.param, error.code), None)


class _Stream(StreamingResponse):
    """A stream of events. left: called at its end, also where its client left before it began."""

    def __init__(self, events: AsyncIterator[str], left: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


def _event(body: dict[str, Any], prompt: int | None) -> str:
    """Return a body as an event; where usage is told at the end, the others say that it is none."""
    told = body if prompt is None else body | {"usage": None}
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"
