"""Claims of earlier work, tested again at our scale: one run, one table (docs/results.md).

    python benchmarks/claims.py -o run/

Larger M at equal sparsity, repetition and removal of blocks, and the order of stages, on the demo
model: calibrated on the first half of WikiText-2 validation, measured on windows of its second half
and of C4, nothing healed, bf16. Every row is kept, so that an interrupted run continues. (Feature
PCA against weight SVD and trains against SVD are rows of methods.py; which blocks and roles matter
is what `spectrim profile` measures.)
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import (
    arguments,
    commits_of,
    excess_of,
    keep_row,
    known_rows,
    losses_of,
    open_demo,
    publish,
    read_arguments,
    two_halves,
    windows_of,
)
from one_line_errors import told

from spectrim.job.job import Job
from spectrim.stages import drop_blocks, sparsify
from spectrim.text.tokens import Tokens

WINDOWS = {"WikiText-2": 8, "C4": 6}
LENGTH = 512  # tokens of a window
Step = Callable[[Job], None]


def main() -> None:
    """Measure all rows, resuming, and write results.md."""
    asked = read_arguments(arguments(__doc__))
    for label, (tokens, steps) in _rows().items():
        keep_row(
            asked.output, tokens, label, 0.0,
            lambda tokens=tokens, steps=steps: _measured(asked, tokens, steps),  # type: ignore[misc]
        )  # fmt: skip
    _write(asked.output)


def _rows() -> dict[str, tuple[str, list[Step]]]:
    """Return what is tried: calibration tokens and the stages, by label."""
    rows: dict[str, tuple[str, list[Step]]] = {"dense": ("48x1024", [])}
    for pattern in ("2:4", "4:8", "8:16", "16:32", "50%"):
        rows[f"sparsify {pattern}"] = ("48x1024", [_sparse(pattern)])
    rows["sparsify 2:4, with SparseGPT's update"] = ("48x1024", [_sparse("2:4", update=True)])
    rows["sparsify 2:4 by magnitude"] = ("48x1024", [_sparse("2:4", score="magnitude")])
    for layers in ("0-14, 14-29", "0-19, 10-29", "0-14, 16-29", "0-14, 14, 16-29"):
        rows[f"blocks {layers}"] = ("48x1024", [_stitched(layers)])
    for importance in ("perplexity", "angular", "taylor", "magnitude"):
        rows[f"drop 3 blocks by {importance}"] = ("24x1024", [_dropped(3, importance)])
    rows["drop 3, then sparsify 4:8"] = ("24x1024", [_dropped(3, "perplexity"), _sparse("4:8")])
    rows["sparsify 4:8, then drop 3"] = ("24x1024", [_sparse("4:8"), _dropped(3, "perplexity")])
    return rows


def _sparse(pattern: str, **options: Any) -> Step:
    return lambda job: sparsify.sparsify(job, sparsify.Options(pattern=pattern, **options))


def _stitched(layers: str) -> Step:
    return lambda job: drop_blocks.drop_blocks(
        job, drop_blocks.Options.model_validate({"layers": layers})
    )


def _dropped(count: int, importance: str) -> Step:
    return lambda job: drop_blocks.drop_blocks(
        job, drop_blocks.Options.model_validate({"drop": count, "importance": importance})
    )


def _measured(asked: argparse.Namespace, tokens: str, steps: list[Step]) -> dict[str, Any]:
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    job = open_demo(str(first), asked.cache, asked.output, tokens)
    texts = windows_of(job, second, asked.data)
    for step in steps:
        step(job)
    walks = {
        name: job.walk(Tokens.full(texts[name].ids[:n, :LENGTH])) for name, n in WINDOWS.items()
    }
    notes = {key: job.notes[key] for key in ("dropped",) if key in job.notes}
    return {**losses_of(walks, None, job), "notes": notes}


def _write(output: Path) -> None:
    known = known_rows(output)
    dense = next(row for row in known.values() if row["label"] == "dense")
    rows = []
    for row in known.values():
        dropped = [one for stage in row["notes"].get("dropped", []) for one in stage["rounds"]]
        rows.append(
            {"table": "claims", "label": row["label"], "tokens": row["calibration"],
             "excess": {text: excess_of(row[text], dense[text]) for text in WINDOWS},
             "perplexity": [math.exp(row[text]["loss"]) for text in WINDOWS],
             "removed": [one["removed"] for one in dropped]}
        )  # fmt: skip
    windows = ", ".join(f"{count} of {name}" for name, count in WINDOWS.items())
    commit = commits_of(known.values())
    print(publish(output, "claims", rows, commit=commit, windows=f"{LENGTH} tokens: {windows}"))


if __name__ == "__main__":
    told(main)
