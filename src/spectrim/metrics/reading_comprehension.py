"""Extractive question answering in SQuAD's format: exact match and F1 of what a model writes.

The English part of XQuAD (Artetxe et al., "On the Cross-lingual Transferability of Monolingual
Representations", 1910.11856): 240 paragraphs of SQuAD 1.1's development set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics.asking.certainty import flips, paired, proportion
from spectrim.metrics.asking.examples import DataSet, Row
from spectrim.metrics.asking.squad import NORMALISED, exact_match, f1
from spectrim.metrics.asking.writing import averaged, how, origin, replies

TASKS = ("xquad.en",)

QUICK_TOKENS, FULL_TOKENS = 12, 50

Judged = tuple[list[bool], list[float]]
"""Of each question, whether the answer matches exactly, and its F1."""


def questions(path: Path) -> Iterator[Row]:
    """Yield the questions of a file in SQuAD's format: context, question, and the right answers.

    Raises:
        ValueError: the file is not JSON, or a question has no right answer.
        KeyError: what the format promises is missing.
    """
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [one["text"] for one in asked["answers"]]
                if not answers:
                    raise ValueError(f"no answer to '{asked['question']}'")
                yield {
                    "context": paragraph["context"],
                    "question": asked["question"],
                    "answers": answers,
                }


def of_hub(row: Row) -> Row:
    """Return the hub's row as the file's."""
    return {**row, "answers": list(row["answers"]["text"])}


DATA = DataSet(
    file="qa/xquad/xquad.en.json",
    hub="google/xquad:xquad.en:validation",
    columns=("context", "question", "answers"),
    parse=questions,
    adapt=of_hub,
    lists=("answers",),
)


# They show that an answer is a few words of the text; without them small models write sentences.
# They are not of the data, so that every seed has the same ones.
EXAMPLES = """Text: The Danube rises in the Black Forest and flows into the Black Sea.
Question: Where does the Danube rise?
Answer: the Black Forest

Text: In 1911 Marie Curie, who was born in Warsaw, received her second Nobel Prize, for chemistry.
Question: When did Marie Curie receive the prize for chemistry?
Answer: 1911

"""


def prompt(row: Row) -> str:
    """Return the examples, the paragraph, and then the question."""
    return f"{EXAMPLES}Text: {row['context']}\nQuestion: {row['question']}\nAnswer:"


def measure(pair: Pair) -> Measurement:
    """Return exact match and F1 of every judged model, and what changed of both.

    Raises:
        UnavailableError: neither the file nor the hub's data set can be had.
        SpectrimError: the file is empty, damaged or not in SQuAD's format.
    """
    rows = DATA.rows(pair, pair.items(quick=24))
    new_tokens = QUICK_TOKENS if pair.evaluation.suite == "quick" else FULL_TOKENS
    prompts, gold = [prompt(row) for row in rows], [row["answers"] for row in rows]
    told = {
        **origin(pair, DATA, "validation"),
        **how(pair, new_tokens),
        "prompt": "two examples, then 'Text: …\\nQuestion: …\\nAnswer:'",
        "examples": 2,
        "normalisation": NORMALISED,
    }
    found: Measurement = {}
    first: Judged | None = None
    for label in pair.judged:
        texts = replies(pair, label, TASKS[0], prompts, new_tokens)
        own = _judged(texts, gold)
        found[label] = _scores(own, first, pair.evaluation.seed, told)
        first = first or own
    return found


def _judged(texts: Sequence[str], gold: Sequence[Sequence[str]]) -> Judged:
    both = list(zip(texts, gold, strict=True))
    return [exact_match(*one) for one in both], [f1(*one) for one in both]


def _scores(own: Judged, dense: Judged | None, seed: int, told: dict[str, Any]) -> list[Score]:
    right, overlaps = own
    mean = averaged(overlaps, "f1", TASKS[0], seed, told)
    found = [proportion(right, "exact_match", TASKS[0], **told), mean]
    if dense is not None:
        found += [paired(dense[1], overlaps, mean, seed), *flips(dense[0], right, TASKS[0])]
    return found
