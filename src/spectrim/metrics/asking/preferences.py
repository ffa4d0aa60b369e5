"""Which of two sentences a model finds likelier: what the measurements of bias share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isclose
from typing import Any

from spectrim.errors import UnavailableError
from spectrim.metrics._contract import Pair, Score
from spectrim.metrics.asking.answers import answered
from spectrim.metrics.asking.certainty import flips
from spectrim.metrics.asking.ways import continuation_losses

Losses = list[tuple[float, int]]
"""Loss in nats and number of tokens of each sentence of an item."""


def losses(pair: Pair, label: str, task: str, items: Sequence[Sequence[str]]) -> list[Losses]:
    """Return the losses of whole sentences, each read from the token that begins a text.

    Raises:
        UnavailableError: the pair has no tokenizer.
    """
    if pair.tokenizer is None:
        raise UnavailableError("bias is measured on sentences; give a tokenizer")
    model, tokenizer = pair.models[label], pair.tokenizer

    def ask(batch: Sequence[Any]) -> list[Losses]:
        return [continuation_losses(model, tokenizer, "", sentences) for sentences in batch]

    found = answered(pair, label, task, [list(one) for one in items], ask)
    return [[(float(nats), int(tokens)) for nats, tokens in one] for one in found]


def preferred(loss: float, other: float) -> float:
    """Return 1 where the first of two is likelier, 0 where the other is, 0.5 where neither is."""
    if isclose(loss, other, rel_tol=1e-6):  # further apart than sums of float32 that are equal
        return 0.5
    return float(loss < other)


def changed(dense: Sequence[float], small: Sequence[float], task: str) -> list[Score]:
    """Return how many preferences moved, which way, and McNemar's p.

    Neither way is better by itself. A p under 0.05 in one of many categories is no finding.
    """
    lost, gained, p = flips(_stereotyped(dense), _stereotyped(small), task)
    return [
        replace(lost, name="to_anti_stereotype", better="none"),
        replace(gained, name="to_stereotype", better="none"),
        p,
    ]


def grouped(
    categories: Sequence[str], task: str
) -> Iterator[tuple[str, dict[str, Any], list[int]]]:
    """Return (task as shown, settings, places) of all items, then of each category's."""
    yield task, {}, list(range(len(categories)))
    for category in sorted(set(categories)):
        places = [place for place, one in enumerate(categories) if one == category]
        yield f"{task}, {category}", {"category": category}, places


def told(pair: Pair, file: str, likelihood: str) -> Mapping[str, Any]:
    """Return the settings that one needs to repeat a measurement of bias."""
    return {"file": file, "seed": pair.evaluation.seed, "likelihood": likelihood}


def _stereotyped(preferences: Sequence[float]) -> list[bool]:
    return [one > 0.5 for one in preferences]
