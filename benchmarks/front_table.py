"""The rows of benchmarks/front.py: excess loss, tasks and bytes, and which of them none beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from front_bench import TASKS, Bench, Row
from measuring import ROTATED, commits_of, excess_of, publish

SIZES = {"linear": "linear_bytes", "file": "bytes"}


def results(bench: Bench, rows: Sequence[Row], cannot: dict[str, str]) -> str:
    """Publish all rows that are measured and return their table, and why others are not."""
    found = bench.known(rows)
    dense = next((one for row, one in found if row.how is None), None)
    if dense is None:
        return "The dense model is not measured yet; ask for it with --rows dense.\n"
    texts = list(bench.texts)
    best = unbeaten([one for _, one in found], texts)
    lines = [
        {"table": "front", "label": row.label, "asked": row.size, **_line(one, dense, texts)}
        | {"front": any(one is other for other in best)}
        for row, one in found
    ]
    windows = ", ".join(f"{len(one)} of {name}" for name, one in bench.texts.items())
    length = next(iter(bench.texts.values())).ids.shape[1]
    said = publish(
        bench.output, "front", lines, model=ROTATED, commit=commits_of(one for _, one in found),
        windows=f"{length} tokens: {windows}", note=_told(bench),
    )  # fmt: skip
    return "".join([said, *(f"- {title}: {reason}\n" for title, reason in cannot.items())])


def unbeaten(rows: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    """Return the rows that no other beats: none has no more linear bytes and no more loss.

    The loss is the mean over the texts; of two that are equal in both, both stay.
    """
    at = [(one["linear_bytes"], math.fsum(one[text]["loss"] for text in texts)) for one in rows]
    return [
        one
        for one, (cost, loss) in zip(rows, at, strict=True)
        if not any(c <= cost and lost <= loss and (c, lost) != (cost, loss) for c, lost in at)
    ]


def accuracy(scores: dict[str, Any]) -> dict[str, Any] | None:
    """Return accuracy with its 95 % interval and McNemar's p; None where there is no accuracy."""
    if "acc" not in scores:
        return None
    found = {"accuracy": [scores["acc"]["value"], *scores["acc"]["interval"]]}
    return found | ({"p": scores["mcnemar_p"]["value"]} if "mcnemar_p" in scores else {})


def _line(one: dict[str, Any], dense: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    return {
        **{name: [one[key] / dense[key], one[key] / 1e6] for name, key in SIZES.items()},
        "excess": {text: excess_of(one[text], dense[text]) for text in texts},
        "perplexity": [_perplexity(one[text]["loss"]) for text in texts],
        "tasks": {task: accuracy(one["tasks"].get(task, {})) for task in TASKS},
    }


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _told(bench: Bench) -> str:
    items = "all items" if bench.limit is None else f"the first {bench.limit} items"
    return (
        f"Calibrated on {Path(bench.calibration['text']).name}, {bench.calibration['tokens']}. "
        f"Tasks: {items}, accuracy with Wilson's 95 % interval and McNemar's p against dense. "
        "Bytes are those of the tensors in the file, parts those of the dense bf16 model."
    )
