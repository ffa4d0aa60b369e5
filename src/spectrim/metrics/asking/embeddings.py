"""What a model makes of many texts: one vector each, kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrim.metrics._contract import Pair
from spectrim.metrics.asking.answers import answered
from spectrim.metrics.asking.ways import embedded

BATCH = 16  # texts read at once

Vectors = NDArray[np.float64]


def embeddings(pair: Pair, label: str, task: str, texts: Sequence[str], most: int) -> Vectors:
    """Return the mean-pooled last hidden states of texts [texts, hidden], to five digits.

    Texts run in the order of their lengths, so that little of a batch is padding. Numbers that are
    not finite, of a model that is broken, become 0: they tell texts apart as little as that.

    Args:
        pair: the models, the tokenizer and the cache.
        label: which model is asked.
        task: what for, in words.
        texts: whatever the tokenizer takes.
        most: tokens of each that are read.
    """
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
    items = [[texts[index], most] for index in order]

    def ask(batch: Sequence[Any]) -> list[list[float]]:
        read = [text for text, _ in batch]
        rows = embedded(pair.models[label], pair.tokenizer, read, most).tolist()  # type: ignore[arg-type]
        return [[float(f"{value:.5g}") for value in row] for row in rows]

    found = answered(pair, label, f"embeddings of {task}", items, ask, batch=BATCH)
    vectors = np.empty((len(texts), len(found[0])))
    vectors[order] = found
    return np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
