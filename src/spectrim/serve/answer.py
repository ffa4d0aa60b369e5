"""One answer in the making: what was asked, the tokens so far, and what has to be told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from numpy import ndarray

from spectrim.serve.sampling import Chosen, Sampler, Sampling, log_probabilities
from spectrim.serve.text_stream import TextStream

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Asked:
    """What one answer is made from."""

    prompt: tuple[int, ...]
    """At least one token."""
    most: int
    """Tokens of the answer, at least 1; prompt and answer fit into the context."""
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each; None tells no probabilities."""


@dataclass(frozen=True)
class Piece:
    """What one token adds to an answer."""

    text: str
    """May be empty: letters of several tokens, and what may become a stop sequence, are held."""
    chosen: Chosen | None
    """Its probability, where that was asked."""
    finish: Finish | None
    """Why the answer ends here, if it does."""
    tokens: int
    """Of the answer so far; the one that ends it counts."""


class Answer:
    """An answer and where it is delivered.

    decode: tokens → text. ends: tokens that end an answer. deliver: called by the scheduler's
    thread with each piece, or with the error that ended it.
    """

    def __init__(
        self,
        asked: Asked,
        decode: Callable[[Sequence[int]], str],
        ends: frozenset[int],
        deliver: Callable[[Piece | Exception], None],
    ) -> None:
        self.asked, self.deliver = asked, deliver
        self.read = 0  # tokens of the prompt that were read
        self.token = 0  # the last one, which the next step goes on with
        self.cancelled = False
        self._ends, self._made = ends, 0
        self._sampler = Sampler(asked.sampling)
        self._text = TextStream(decode, asked.stop)

    def take(self, logits: Float[ndarray, " vocabulary"]) -> bool:
        """Draw a token, deliver what it adds, and return whether the answer ends with it."""
        self.token = self._sampler.draw(logits)
        self._made += 1
        count = self.asked.logprobs
        chosen = None if count is None else log_probabilities(logits, self.token, count)
        ended = self.token in self._ends
        text = self._text.finish() if ended else self._text.push(self.token)
        finish: Finish | None = None
        if ended or self._text.stopped:
            finish = "stop"
        elif self._made >= self.asked.most:
            finish, text = "length", text + self._text.finish()
        self.deliver(Piece(text, chosen, finish, self._made))
        return finish is not None
