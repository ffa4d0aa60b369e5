"""What each part of the default pays: one run, one machine, one table (docs/results.md).

    python benchmarks/parts.py -o run/ [--keeps 0.9,0.8,0.6]

Calibrates on the first half of WikiText-2 validation, measures on windows of its second half and on
texts unlike it, without healing, in the checkpoint's bf16; then once more with the default
calibration text as it is without a network, and with local text of the kinds and shares that it has
with one. Every row is kept in the run folder, so that an interrupted run continues.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

from measuring import (
    OUTSIDE,
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
from mixed_text import with_a_network
from one_line_errors import told

from spectrim.cutting.prediction import prediction
from spectrim.job.job import Budget, Job
from spectrim.recipe.options import Factorize
from spectrim.stages.factorize import factorize
from spectrim.text.tokens import Tokens

PUBLISHED = {"method": "whitened_svd", "allocator": "uniform", "rank_multiple": 1}
ROWS: dict[str, dict[str, Any]] = {
    "whitened, uniform, two factors (SVD-LLM)": {**PUBLISHED, "format": "low_rank"},
    "+ pivoted storage": {**PUBLISHED, "format": "pivoted"},
    "+ two-sided": {"allocator": "uniform", "rank_multiple": 1},
    "+ global": {},
    "+ refinement": {"refine": "on"},
}


def main() -> None:
    """Measure all rows, resuming, and write parts.json and results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--keeps", default="0.9,0.8,0.6")
    parser.add_argument("--calibrations", default="WikiText-2,network,default")
    asked = read_arguments(parser)
    halves = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    keeps = [float(keep) for keep in asked.keeps.split(",")]
    for name in asked.calibrations.split(","):
        calibration = name  # "default", or any other text
        if name == "WikiText-2":
            calibration = str(halves[0])
        elif name == "network":
            calibration = str(with_a_network(asked.data, halves[0], asked.output))
        job = open_demo(calibration, asked.cache, asked.output)
        texts = windows_of(job, halves[1], asked.data)
        _measure_all(job, name, texts, keeps, asked.output)
    _write(asked.output)


def _measure_all(
    job: Job, calibration: str, texts: dict[str, Tokens], keeps: list[float], output: Path
) -> None:
    walks = {name: job.walk(windows) for name, windows in texts.items()}
    keep_row(output, calibration, "dense", 1.0, lambda: losses_of(walks, None, job))
    rows = (
        ROWS
        if calibration == "WikiText-2"
        else {"the default (refinement where it helps)": {"refine": "auto"}}
    )
    for keep in keeps:
        for label, options in rows.items():
            keep_row(
                output, calibration, label, keep,
                lambda keep=keep, options=options: _shrunk(job, walks, keep, options),  # type: ignore[misc]
            )  # fmt: skip
    keep_row(output, calibration, "prediction", 0.0, lambda: prediction(job, Factorize()))


def _shrunk(
    job: Job, walks: dict[str, Any], keep: float, options: dict[str, Any]
) -> dict[str, Any]:
    job.budget, job.plan, job.blocks = Budget(keep, "linear"), None, None
    shutil.rmtree(job.work, ignore_errors=True)
    began = time.perf_counter()
    factorize(job, Factorize(**{"refine": "off", **options}))
    took = time.perf_counter() - began
    assert job.plan is not None
    stored = sum(decision.stored for decision in job.plan.decisions)
    dense = sum(decision.dense for decision in job.plan.decisions)
    found = losses_of(walks, job.blocks, job)
    found.update(
        stored=stored / dense, predicted=job.plan.predicted_loss, seconds=took,
        refinement=job.notes.pop("refinement", None),
    )  # fmt: skip
    return found


def _write(output: Path) -> None:
    """Publish the excess loss over the dense model, nats per token, with its spread."""
    known = known_rows(output)
    texts = ["WikiText-2", *OUTSIDE]
    dense = known["WikiText-2 | dense | 1"]
    first = {
        "table": "parts",
        "calibration": "",
        "keep": 1.0,
        "label": "dense (loss)",
        "stored": 1.0,
    }
    rows = [
        first
        | {"loss": {t: dense[t]["loss"] for t in texts},
           "perplexity": math.exp(dense["WikiText-2"]["loss"])}
    ]  # fmt: skip
    for row in sorted(known.values(), key=lambda row: -row["keep"]):
        if "stored" not in row:
            continue
        published = known.get(f"WikiText-2 | {next(iter(ROWS))} | {row['keep']:g}")
        own = {key: row[key] for key in ("calibration", "keep", "label", "stored")}
        rows.append(
            {"table": "parts", **own, "excess": {t: excess_of(row[t], dense[t]) for t in texts},
             "perplexity": math.exp(row["WikiText-2"]["loss"]),
             "of_published": [_excess(row, dense, t) / _excess(published, dense, t) for t in texts]
             if published else None}
        )  # fmt: skip
    said = publish(
        output, "parts", [*rows, *_predictions(known)], commit=commits_of(known.values()),
        windows="1024 tokens: 16 of WikiText-2, 6 of each other text",
    )  # fmt: skip
    print(said)


def _excess(row: dict[str, Any], dense: dict[str, Any], text: str) -> float:
    return float(row[text]["loss"] - dense[text]["loss"])


def _predictions(known: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was predicted and measured with WikiText-2, budget by budget."""
    found = known.get("WikiText-2 | prediction | 0")
    if found is None:
        return []
    three = zip(found["budgets"], found["predicted"], found["measured"], strict=True)
    return [
        {"table": "predictions", "keep": keep, "predicted": predicted, "measured": measured}
        for keep, predicted, measured in three
    ]


if __name__ == "__main__":
    told(main)
