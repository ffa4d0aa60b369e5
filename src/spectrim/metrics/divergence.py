"""How far a smaller model's predictions are from the dense one's."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor, nn

from spectrim.metrics import Measurement, Pair, Reading, Score, read


def divergence(
    dense: nn.Module,
    small: nn.Module,
    ids: Int[Tensor, "sequences length"],
    *,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Score, Score]:
    """Return KL(dense || small) in nats per token and the share of equal first choices.

    One pass over both models; see ``metrics.read`` for what is held in memory.

    Args:
        dense: the reference.
        small: what is measured against it.
        ids: token windows, as ``metrics.windows`` cuts them.
        stride: the stride they were cut with; None where windows share no tokens.
        progress: called with (windows done, windows in all).

    Raises:
        SpectrimError: no window, or windows under two tokens.
    """
    reading = read([dense, small], ids, stride=stride, progress=progress)
    return _scores(reading, 1)


def measure(pair: Pair) -> Measurement:
    """Return divergence and agreement of every model but the reference, on every text."""
    labels = list(pair.models)
    return {
        label: [
            score.on(text)
            for text, reading in pair.readings.items()
            for score in _scores(reading, index)
        ]
        for index, label in enumerate(labels)
        if index
    }


def _scores(reading: Reading, model: int) -> tuple[Score, Score]:
    divergences, agreements = reading.divergences[model], reading.agreements[model]
    return (
        Score.average(reading, divergences, "kl", "nats/token", "lower"),
        Score.average(reading, agreements, "agreement", "share", "higher"),
    )
