"""How sure a number is: intervals, and whether two models' answers really differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, t

from spectrim.metrics._contract import Score

RESAMPLES = 1000

Column = Sequence[Any] | NDArray[Any]
"""One value for each item."""


def proportion(right: Sequence[bool], name: str, task: str, **settings: Any) -> Score:
    """Return the share of right answers with its 95 % Wilson interval."""
    count = len(right)
    found = binomtest(sum(right), count).proportion_ci(0.95, method="wilson")
    value = sum(right) / count
    ends = (float(found.low), float(found.high))
    return Score(name, value, "share", "higher", count, ends, {**settings, "task": task})


def mean(
    values: Sequence[float], name: str, unit: str, better: Any, task: str, **settings: Any
) -> Score:
    """Return the mean with its 95 % t interval; none for a single value."""
    held = np.asarray(values, dtype=float)
    ends = None
    if len(held) > 1:
        reach = float(t.ppf(0.975, len(held) - 1) * held.std(ddof=1) / len(held) ** 0.5)
        ends = (float(held.mean()) - reach, float(held.mean()) + reach)
    return Score(
        name, float(held.mean()), unit, better, len(held), ends, {**settings, "task": task}
    )


def resampled(
    statistic: Callable[..., float], columns: Sequence[Column], seed: int
) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of a statistic of items' columns.

    statistic: called with as many index arrays' worth of columns as there are columns.
    """
    arrays = [np.asarray(column) for column in columns]
    count = len(arrays[0])
    if count < 2:
        return None
    found = bootstrap(
        (np.arange(count),),
        lambda index: statistic(*(array[index] for array in arrays)),
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = found.confidence_interval
    return float(interval.low), float(interval.high)


def paired(dense: Column, small: Column, of: Score, seed: int) -> Score:
    """Return the mean of small minus dense, with its 95 % paired bootstrap interval.

    Both answered the same items, so what makes an item hard for both is no part of the doubt: the
    differences are resampled, not the values (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 16).

    Args:
        dense: values of the reference, one of each item or group of items.
        small: those of the smaller model, in the same order.
        of: the smaller model's score, whose unit, direction, n and settings hold here too.
        seed: draws the resamples.
    """
    apart = np.subtract(small, dense)
    ends = resampled(lambda column: float(column.mean()), [apart], seed)
    settings = {**of.settings, "bootstrap": RESAMPLES, "interval": "95 % paired bootstrap"}
    name = f"{of.name}_difference_to_dense"
    return replace(of, name=name, value=float(apart.mean()), interval=ends, settings=settings)


def flips(dense: Sequence[bool], small: Sequence[bool], task: str) -> list[Score]:
    """Return the shares of answers that became wrong and right, and McNemar's exact p.

    An unchanged accuracy may hide as many answers lost as gained ("Accuracy is Not All You Need",
    2407.09141). p is the probability of so uneven a split between both kinds if compression moved
    answers both ways alike.
    """
    lost = [was and not now for was, now in zip(dense, small, strict=True)]
    gained = [now and not was for was, now in zip(dense, small, strict=True)]
    moved = sum(lost) + sum(gained)
    p = float(binomtest(sum(lost), moved).pvalue) if moved else 1.0
    return [
        _counted(lost, "lost", "lower", task),
        _counted(gained, "gained", "none", task),
        Score("mcnemar_p", p, "probability", "none", len(dense), None, {"task": task}),
    ]


def _counted(which: Sequence[bool], name: str, better: Any, task: str) -> Score:
    found = proportion(which, name, task)
    return Score(name, found.value, "share", better, found.n, found.interval, found.settings)
