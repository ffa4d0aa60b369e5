"""The table of benchmarks/front.py: excess loss, tasks and bytes, and which rows none beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from front_bench import TASKS, Bench, Row
from measuring import excess_of, how_measured

SIZES = ("linear_bytes", "bytes")


def results(bench: Bench, rows: Sequence[Row], cannot: dict[str, str]) -> str:
    """Return the table of all rows that are measured, and why others are not."""
    found = bench.known(rows)
    dense = next((one for row, one in found if row.how is None), None)
    if dense is None:
        return "The dense model is not measured yet; ask for it with --rows dense.\n"
    texts = list(bench.texts)
    head = ["row", "asked", "linear bytes", "file bytes", *(f"{one}, excess" for one in texts),
            f"perplexity, {' / '.join(texts)}", *TASKS, "on the front"]  # fmt: skip
    best = unbeaten([one for _, one in found], texts)
    lines = [head, ["---"] * len(head)]
    for row, one in found:
        mark = "yes" if any(one is other for other in best) else ""
        lines.append([row.label, f"{row.size:.0%}", *_cells(one, dense, texts), mark])
    windows = ", ".join(f"{len(one)} of {name}" for name, one in bench.texts.items())
    length = next(iter(bench.texts.values())).ids.shape[1]
    about = how_measured({one["commit"] for _, one in found}, windows, length)
    return "\n".join(
        ["| " + " | ".join(line) + " |" for line in lines]
        + [
            "",
            *(f"- {title}: {reason}" for title, reason in cannot.items()),
            "",
            about,
            _told(bench),
        ]
    )


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


def _cells(one: dict[str, Any], dense: dict[str, Any], texts: list[str]) -> list[str]:
    return [
        *(f"{one[key] / dense[key]:.1%} ({one[key] / 1e6:.1f} MB)" for key in SIZES),
        *(excess_of(one[text], dense[text]) for text in texts),
        " / ".join(f"{_perplexity(one[text]['loss']):.4g}" for text in texts),
        *(_accuracy(one["tasks"].get(task, {})) for task in TASKS),
    ]


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _accuracy(scores: dict[str, Any]) -> str:
    """Return accuracy and its 95 % interval, and McNemar's p against the dense model."""
    if "acc" not in scores:
        return ""
    value, (low, high) = scores["acc"]["value"], scores["acc"]["interval"]
    p = f", p {scores['mcnemar_p']['value']:.2g}" if "mcnemar_p" in scores else ""
    return f"{value:.1%} ({low:.1%} to {high:.1%}{p})"


def _told(bench: Bench) -> str:
    items = "all items" if bench.limit is None else f"the first {bench.limit} items"
    return (
        f"Calibrated on {Path(bench.calibration['text']).name}, {bench.calibration['tokens']}. "
        f"Tasks: {items}, accuracy with Wilson's 95 % interval and McNemar's p against dense. "
        "Bytes are those of the tensors in the file, parts those of the dense bf16 model.\n"
    )
