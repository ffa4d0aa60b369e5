"""Loss and perplexity on token windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, inf, isnan, nan

from jaxtyping import Int
from torch import Tensor, nn

from spectrim.metrics import Measurement, Pair, Score, read
from spectrim.metrics.asking.answers import readings


def perplexity(
    model: nn.Module,
    ids: Int[Tensor, "sequences length"],
    *,
    stride: int | None = None,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Return exp(loss) over every scored token, with its 95 % t interval over sequences.

    For an encoder-decoder model it is the perplexity of the decoder on the windows that the encoder
    has read: how well the model tells a text back, not how well it guesses it.

    Args:
        model: a causal or an encoder-decoder model with a head.
        ids: token windows, as ``metrics.windows`` cuts them.
        stride: the stride they were cut with; None where windows share no tokens.
        batch: windows per forward pass; their logits are held at once.
        progress: called with (windows done, windows in all).

    Raises:
        SpectrimError: no window, or windows under two tokens.
    """
    reading = read([model], ids, stride=stride, batch=batch, progress=progress)
    return from_loss(Score.average(reading, reading.losses[0], "loss", "nats/token", "lower"))


def from_loss(loss: Score) -> Score:
    """Return the perplexity that a loss in nats per token stands for, its interval with it."""
    ends = loss.interval and (_exp(loss.interval[0]), _exp(loss.interval[1]))
    value = _exp(loss.value)
    return replace(loss, name="perplexity", value=value, unit="", interval=ends or None)


def measure(pair: Pair) -> Measurement:
    """Return loss, perplexity and the excess over the reference on every text.

    The excess has its own interval, from the differences sequence by sequence: far narrower than
    the losses' own, because both models read the same text.
    """
    found: Measurement = {label: [] for label in pair.models}
    for text, reading in readings(pair).items():
        for index, label in enumerate(pair.models):
            sums = reading.losses[index]
            loss = Score.average(reading, sums, "loss", "nats/token", "lower")
            found[label] += [loss.on(text), from_loss(loss).on(text)]
            if index:
                over = sums - reading.losses[0]
                excess = Score.average(reading, over, "excess_loss", "nats/token", "lower")
                found[label].append(excess.on(text))
    return found


def _exp(value: float) -> float:
    if isnan(value):
        return nan
    return exp(value) if value < 700 else inf
