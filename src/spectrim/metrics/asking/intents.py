"""Intent detection: the data, and the scores of answers whatever way they were got."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrim.metrics._contract import Measurement, Pair, Score
from spectrim.metrics.asking.certainty import flips, proportion, resampled
from spectrim.metrics.asking.examples import DataSet, Row

COLUMNS = ("text", "category")


@dataclass(frozen=True)
class Intents:
    """One corpus of utterances with their intents."""

    shown: str
    train: DataSet
    test: DataSet


def parallel(path: Path) -> Iterable[Row]:
    """Return the rows of ``seq.in``, an utterance a line, and of ``label`` beside it.

    Raises:
        ValueError: ``label`` is not there, or is not as long.
    """
    beside = path.with_name("label")
    if not beside.is_file():
        raise ValueError(f"no file 'label' beside {path.name}")
    texts, labels = (_lines(one) for one in (path, beside))
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} lines, and {len(labels)} in the file 'label' beside it")
    return [
        {"text": text.strip(), "category": label.strip()}
        for text, label in zip(texts, labels, strict=True)
    ]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def _named(row: Row) -> Row:
    return {"text": row["text"], "category": row["label_text"]}


def _banking(part: str) -> DataSet:
    file, hub = f"intent/banking77/{part}.csv", f"mteb/banking77::{part}"
    return DataSet(file=file, hub=hub, columns=COLUMNS, adapt=_named)


def _snips(part: str) -> DataSet:
    file, hub = f"intent/snips_slotgated/{part}/seq.in", f"benayas/snips::{part}"
    return DataSet(file=file, hub=hub, columns=COLUMNS, parse=parallel)


CORPORA: Mapping[str, Intents] = {
    "banking77": Intents("Banking77", _banking("train"), _banking("test")),
    "snips": Intents("SNIPS", _snips("train"), _snips("test")),
}
"""Casanueva et al., 2003.04807, 77 intents; Coucke et al., 1805.10190, 7 intents."""


def words(category: str) -> str:
    """Return a label's name as words: ``card_arrival`` and ``CardArrival`` as "card arrival"."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", category.replace("_", " "))
    return apart.strip(" ?").lower()


def macro_f1(truth: NDArray[np.int64], said: NDArray[np.int64]) -> float:
    """Return the mean of the F1 scores of the classes that occur in ``truth``; 0 to 1.

    Classes that a small sample lacks do not count as failed; saying one of them still costs the
    class that was right.
    """
    most = int(max(truth.max(), said.max())) + 1
    hits = np.bincount(truth[truth == said], minlength=most)
    there, told = np.bincount(truth, minlength=most), np.bincount(said, minlength=most)
    present = there > 0
    return float((2 * hits[present] / (there + told)[present]).mean())


def scored(
    pair: Pair,
    task: str,
    truth: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
) -> Measurement:
    """Return accuracy, macro-F1 and the flips of every model.

    Args:
        pair: its seed draws the resamples.
        task: as shown.
        truth: the right labels.
        answers: label of a model → the labels it chose; the first model is the reference.
        settings: what one needs to repeat it.
    """
    numbers = {name: number for number, name in enumerate(sorted({*truth, *_all(answers)}))}
    right = np.array([numbers[one] for one in truth])
    reference: list[bool] | None = None
    found: Measurement = {}
    for label, chosen in answers.items():
        said = np.array([numbers[one] for one in chosen])
        hits = [bool(hit) for hit in said == right]
        ends = resampled(macro_f1, [list(right), list(said)], pair.evaluation.seed)
        told = {**settings, "task": task}
        f1 = Score("macro_f1", macro_f1(right, said), "share", "higher", len(hits), ends, told)
        found[label] = [proportion(hits, "accuracy", task, **settings), f1]
        if reference is not None:
            found[label] += flips(reference, hits, task)
        reference = hits if reference is None else reference
    return found


def _all(answers: Mapping[str, Sequence[str]]) -> set[str]:
    return {one for chosen in answers.values() for one in chosen}
