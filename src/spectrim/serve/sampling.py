"""How the next token is drawn from logits, and what its probability was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

_LIKELY = 512  # tokens that nearly always hold top_p; all are sorted only where they do not


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 takes the likeliest; top_p leaves out the unlikely."""

    temperature: float = 1.0
    """0 to 2; logits are divided by it."""
    top_p: float = 1.0
    """0 to 1; only the likeliest tokens are drawn from that together have this probability."""
    seed: int | None = None
    """Same seed, same draws; None draws anew each time."""


@dataclass(frozen=True)
class Chosen:
    """A token and the natural logarithms of its probability and of those of the likeliest."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Sampler:
    """Draws the tokens of one answer, with random numbers of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = sampling.seed
        self._random = np.random.default_rng(None if seed is None else seed % 2**64)

    def draw(self, logits: Float[ndarray, " vocabulary"]) -> int:
        """Return the next token.

        Raises:
            FloatingPointError: a logit is no number, or the largest is infinite, so that nothing
                can be drawn.
        """
        if not np.isfinite(logits.max()):  # which is no number where any is none
            raise FloatingPointError("the model's logits are no numbers")
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        precise = logits.astype(np.float64)
        with np.errstate(over="ignore"):  # at temperatures of nearly 0 all but the likeliest are 0
            weights = np.exp((precise - precise.max()) / self._sampling.temperature)
        if self._sampling.top_p < 1:
            kept = _nucleus(weights, self._sampling.top_p)
            return int(kept[self._one_of(weights[kept])])
        return self._one_of(weights)

    def _one_of(self, weights: Float[ndarray, " tokens"]) -> int:
        """Return an index, each as likely as its weight."""
        reached = weights.cumsum()
        found = np.searchsorted(reached, self._random.random() * reached[-1], side="right")
        return min(int(found), len(weights) - 1)


def log_probabilities(logits: Float[ndarray, " vocabulary"], token: int, count: int) -> Chosen:
    """Return a token's log-probability and the ``count`` likeliest tokens, before temperature."""
    precise = logits.astype(np.float64)
    top = precise.max()
    logprobs = precise - top - np.log(np.exp(precise - top).sum())
    first = _largest(logprobs, count) if count else np.empty(0, dtype=np.int64)
    likeliest = tuple((int(index), float(logprobs[index])) for index in first)
    return Chosen(token, float(logprobs[token]), likeliest)


def _nucleus(weights: Float[ndarray, " vocabulary"], top_p: float) -> Int[ndarray, " tokens"]:
    """Return the likeliest tokens, as few as have the probability top_p together: at least one."""
    wanted = top_p * weights.sum()
    for count in (_LIKELY, len(weights)):
        order = _largest(weights, count)
        reached = weights[order].cumsum()
        if reached[-1] >= wanted:
            break
    return order[: int(np.searchsorted(reached, wanted)) + 1]


def _largest(values: Float[ndarray, " all"], count: int) -> Int[ndarray, " largest"]:
    """Return where the largest values are, the largest first."""
    if count < len(values):
        found = np.argpartition(values, -count)[-count:]
    else:
        found = np.arange(len(values))
    return found[np.argsort(-values[found], kind="stable")]
