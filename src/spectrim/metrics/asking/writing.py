"""What models write in answer to prompts, whose data it was, and means of what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectrim.errors import UnavailableError
from spectrim.metrics._contract import Pair, Score
from spectrim.metrics.asking.answers import answered
from spectrim.metrics.asking.certainty import RESAMPLES, resampled
from spectrim.metrics.asking.examples import DataSet
from spectrim.metrics.asking.ways import MOST, written

BATCH = 8
PLAIN = "plain text, also for models with a chat template"


def replies(
    pair: Pair,
    label: str,
    task: str,
    prompts: Sequence[str],
    new_tokens: int,
    until: str | None = "\n",
) -> list[str]:
    """Return what a model of the pair writes after each prompt, greedily and cut before ``until``.

    Raises:
        UnavailableError: the pair has no tokenizer.
    """
    tokenizer = pair.tokenizer
    if tokenizer is None:
        raise UnavailableError(f"{task} is written, and the model folder has no tokenizer")
    # Prompts of a batch are padded to its longest; neighbours in length waste least.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    items = [
        {"prompt": prompts[index], "new_tokens": new_tokens, "until": until} for index in order
    ]
    found = answered(
        pair,
        label,
        f"writing {task}",
        items,
        lambda some: written(
            pair.models[label], tokenizer, [one["prompt"] for one in some], new_tokens, until
        ),
        batch=BATCH,
    )
    return [text for _, text in sorted(zip(order, found, strict=True))]


def how(pair: Pair, new_tokens: int) -> dict[str, Any]:
    """Return the settings of ``replies`` that a score must state to be measured again."""
    return {
        "seed": pair.evaluation.seed,
        "prompt_style": PLAIN,
        "decoding": "greedy",
        "new_tokens": new_tokens,
        "prompt_tokens": MOST,
    }


def origin(pair: Pair, data: DataSet, file_split: str) -> dict[str, str]:
    """Return which data and which split of it are used: the file's, else the hub's."""
    if data.local(pair) is not None:
        return {"data": data.file, "split": file_split}
    return {"data": data.hub, "split": data.hub.rpartition(":")[2]}


def averaged(
    values: Sequence[float], name: str, task: str, seed: int, settings: dict[str, Any]
) -> Score:
    """Return the mean of shares of 1 with its 95 % percentile bootstrap interval over items."""
    ends = resampled(lambda column: float(np.mean(column)), [values], seed)
    told = {**settings, "bootstrap": RESAMPLES, "task": task}
    return Score(name, float(np.mean(values)), "share", "higher", len(values), ends, told)
