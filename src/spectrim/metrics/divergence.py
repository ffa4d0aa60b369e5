"""How far a smaller model's predictions are from the dense one's."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Int
from scipy.stats import binomtest
from torch import Tensor, nn

from spectrim.metrics import Measurement, Pair, Reading, Score, read
from spectrim.metrics.asking.answers import readings


def divergence(
    dense: nn.Module,
    small: nn.Module,
    ids: Int[Tensor, "sequences length"],
    *,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Score, Score, Score]:
    """Return KL(dense || small), the share of equal first choices, and Jensen-Shannon divergence.

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
    """Return next-token accuracy of every model, and how the others differ from the first."""
    found: Measurement = {label: [] for label in pair.models}
    for text, reading in readings(pair).items():
        for index, label in enumerate(pair.models):
            scores = [Score.average(reading, reading.right[index], "next_token", "share", "higher")]
            if index:
                scores += [*_scores(reading, index), *_flips(reading, index)]
            found[label] += [score.on(text) for score in scores]
    return found


def _scores(reading: Reading, model: int) -> tuple[Score, Score, Score]:
    return (
        Score.average(reading, reading.divergences[model], "kl", "nats/token", "lower"),
        Score.average(reading, reading.agreements[model], "agreement", "share", "higher"),
        Score.average(
            reading, reading.jensen_shannon[model], "jensen_shannon", "nats/token", "lower"
        ),
    )


def _flips(reading: Reading, model: int) -> tuple[Score, ...]:
    """Return what of the next-token accuracy was lost and gained, and McNemar's p.

    p takes tokens as independent, which those of one text are not quite.
    """
    lost, gained = int(reading.lost[model].sum()), int(reading.gained[model].sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    count = int(reading.tokens.sum())
    return (
        Score.average(reading, reading.lost[model], "lost", "share", "lower"),
        Score.average(reading, reading.gained[model], "gained", "share", "none"),
        Score("mcnemar_p", p, "probability", "none", count, None, {"tokens": count}),
    )
