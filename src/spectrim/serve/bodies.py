"""Answers in OpenAI's form: whole ones and the chunks of streams, of chats and of completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spectrim.serve.answer import Piece
from spectrim.serve.sampling import Chosen

Decode = Callable[[Sequence[int]], str]
Body = dict[str, Any]


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Return how many tokens were read and written."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


@dataclass(frozen=True)
class Form:
    """How one request is answered."""

    chat: bool
    model: str
    decode: Decode
    likeliest: bool
    """Whether the probabilities of other tokens are told."""
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    def whole(self, pieces: Sequence[Piece], prompt: int) -> Body:
        """Return the answer that pieces make; prompt: how many tokens it has."""
        text = "".join(piece.text for piece in pieces)
        choice: Body = {"index": 0, "logprobs": self._logprobs(pieces, "")}
        choice["finish_reason"] = pieces[-1].finish
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        return self._body(kind, [choice]) | {"usage": usage(prompt, pieces[-1].tokens)}

    def first(self) -> Body | None:
        """Return the chunk before all text, which says who speaks; completions have none."""
        return self._chunk({"role": "assistant", "content": ""}) if self.chat else None

    def chunks(self, piece: Piece, before: str) -> list[Body]:
        """Return what is streamed of a piece; before: the text of those before it."""
        logprobs = self._logprobs([piece], before)
        if not self.chat:
            choice = {"index": 0, "text": piece.text, "logprobs": logprobs}
            if piece.text or piece.finish or logprobs:
                return [self._body("text_completion", [choice | {"finish_reason": piece.finish}])]
            return []
        found = [self._chunk({"content": piece.text}, logprobs)] if piece.text or logprobs else []
        return found + ([self._chunk({}, finish=piece.finish)] if piece.finish else [])

    def last(self, prompt: int, completion: int) -> Body:
        """Return the chunk that has no text, only the usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._body(kind, []) | {"usage": usage(prompt, completion)}

    def _chunk(self, delta: Body, logprobs: Body | None = None, finish: str | None = None) -> Body:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._body("chat.completion.chunk", [choice])

    def _body(self, kind: str, choices: list[Body]) -> Body:
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        return {
            "id": prefix + self.number,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _logprobs(self, pieces: Sequence[Piece], before: str) -> Body | None:
        chosen = [piece.chosen for piece in pieces if piece.chosen is not None]
        if not chosen:
            return None
        if self.chat:
            return {"content": [self._token(one) for one in chosen], "refusal": None}
        offsets = [len(before)]
        for piece in pieces[:-1]:
            offsets.append(offsets[-1] + len(piece.text))
        told = [{self.decode([token]): value for token, value in one.likeliest} for one in chosen]
        return {
            "tokens": [self.decode([one.token]) for one in chosen],
            "token_logprobs": [one.logprob for one in chosen],
            "top_logprobs": told if self.likeliest else None,
            "text_offset": offsets,
        }

    def _token(self, chosen: Chosen) -> Body:
        others = [self._said(token, value) for token, value in chosen.likeliest]
        return self._said(chosen.token, chosen.logprob) | {"top_logprobs": others}

    def _said(self, token: int, logprob: float) -> Body:
        text = self.decode([token])
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # else it is a part of a letter
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode(errors="replace")) if whole else None,
        }
