"""TriviaQA in both forms: the questions, and how well an answer matches the right ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spectrim.metrics._contract import Measurement, Pair, Score
from spectrim.metrics.asking.certainty import flips, proportion
from spectrim.metrics.asking.examples import Row
from spectrim.metrics.asking.squad import NORMALISED, normalised
from spectrim.metrics.asking.writing import how, replies

TIERS = {
    "exact": "the answer is a right one",
    "substring": "the answer holds a right one as whole words, or is exact",
    "words": "the answer holds at least 80 % of a right one's words, or is either of the above",
}
SHARE = 0.8

QUICK_TOKENS, FULL_TOKENS = 16, 50


def tiers(answer: str, gold: Sequence[str]) -> dict[str, bool]:
    """Return, for each tier of matching, whether the answer reaches it with any right answer.

    All are compared as SQuAD normalises them. A right answer of which nothing is left then ("The
    The") is passed over. Who reaches one tier reaches those after it.
    """
    said = normalised(answer)
    words = frozenset(said.split())
    wanted = [one for one in map(normalised, gold) if one]
    exact = said in wanted
    substring = any(f" {one} " in f" {said} " for one in wanted)
    return {
        "exact": exact,
        "substring": substring,
        "words": any(_held(one.split(), words) >= SHARE for one in wanted),
    }


def _held(wanted: list[str], words: frozenset[str]) -> float:
    return sum(word in words for word in wanted) / len(wanted)


def of_hub(row: Row) -> Row:
    """Return the hub's row as the file's: context, answer and aliases."""
    answer = row["answer"]
    return {
        "context": f"Question: {row['question']}\nAnswer:",
        "answer": answer["value"],
        "aliases": list(answer["aliases"]),
    }


def scored(
    pair: Pair, task: str, rows: Sequence[Row], prompt: Callable[[Row], str], told: dict[str, Any]
) -> Measurement:
    """Return the share of answers on each tier for every judged model, and flips of the last tier.

    Args:
        pair: the models.
        task: the name that users know.
        rows: answer and aliases, and what ``prompt`` needs.
        prompt: row → the finished prompt.
        told: further settings of the scores.
    """
    new_tokens = QUICK_TOKENS if pair.evaluation.suite == "quick" else FULL_TOKENS
    prompts = [prompt(row) for row in rows]
    gold = [[row["answer"], *row["aliases"]] for row in rows]
    settings = {**told, **how(pair, new_tokens), "normalisation": NORMALISED}
    reached = {}
    for label in pair.judged:
        texts = replies(pair, label, task, prompts, new_tokens)
        reached[label] = [tiers(*both) for both in zip(texts, gold, strict=True)]
    first = next(iter(reached))
    return {
        label: _scores(found, task, settings)
        + ([] if label == first else _flips(reached[first], found, task))
        for label, found in reached.items()
    }


def _scores(found: Sequence[dict[str, bool]], task: str, settings: dict[str, Any]) -> list[Score]:
    return [
        proportion([one[tier] for one in found], tier, task, **settings, counts=meaning)
        for tier, meaning in TIERS.items()
    ]


def _flips(
    dense: Sequence[dict[str, bool]], small: Sequence[dict[str, bool]], task: str
) -> list[Score]:
    moved = flips([one["words"] for one in dense], [one["words"] for one in small], task)
    return [replace(one, settings={**one.settings, "of": "words"}) for one in moved]
