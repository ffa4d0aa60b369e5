"""Every method at four sizes, and all of them together: one run, one table (docs/results.md).

    python benchmarks/methods.py -o run/ [--keeps 0.8,0.6,0.9,0.4] [--methods a,b]

Calibrates on the first half of WikiText-2 validation, measures on windows of its second half and of
C4, without healing or refinement, in the checkpoint's bf16. Decode speed is the median ratio to the
dense model over rounds that take turns. Every row is kept, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from measuring import (
    excess_of,
    how_measured,
    keep_row,
    known_rows,
    losses_of,
    open_demo,
    two_halves,
    windows_of,
)

from spectrim import sources
from spectrim.calibration import Tokens
from spectrim.errors import SpectrimError
from spectrim.job import Job
from spectrim.methods import methods
from spectrim.metrics.speed import speed
from spectrim.options import Factorize
from spectrim.pipeline import write_model
from spectrim.sources import Source
from spectrim.stages.factorize import factorize

WINDOWS = {"WikiText-2": 8, "C4": 4}
MIXED = "all of them, the best for each site"
ROUNDS, NEW_TOKENS = 5, 24


def main() -> None:
    """Measure all rows, resuming, and write results.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SPECTRIM_DATA", "../shared/data"))
    )
    parser.add_argument("--keeps", default="0.8,0.6,0.9,0.4")
    parser.add_argument("--methods", default=",".join(methods.names()))
    parser.add_argument("--mixed", default=",".join(methods.names()), help="taken together")
    parser.add_argument("--cache", type=Path, default=sources.default_cache())
    asked = parser.parse_args()
    if not asked.data.is_dir():
        raise SystemExit(f"no texts in {asked.data}; set SPECTRIM_DATA to their folder")
    asked.output.mkdir(parents=True, exist_ok=True)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    job = open_demo(str(first), asked.cache, asked.output)
    texts = windows_of(job, second, asked.data)
    walks = {name: job.walk(Tokens.full(texts[name].ids[:n])) for name, n in WINDOWS.items()}
    keep_row(asked.output, "", "dense", 1.0, lambda: losses_of(walks, None, job))
    rows = {name: name for name in asked.methods.split(",")} | {MIXED: asked.mixed}
    for keep in (float(keep) for keep in asked.keeps.split(",")):
        for label, names in rows.items():
            keep_row(
                asked.output, "", label, keep,
                lambda keep=keep, names=names: _shrunk(job, walks, keep, names),  # type: ignore[misc]
            )  # fmt: skip
    _write(asked.output, list(rows))


def _shrunk(job: Job, walks: dict[str, Any], keep: float, names: str) -> dict[str, Any]:
    job.keep, job.plan, job.blocks = (keep, "linear"), None, None
    shutil.rmtree(job.work, ignore_errors=True)
    began = time.perf_counter()
    try:
        factorize(job, Factorize(method=names, refine="off"))
    except SpectrimError as error:  # one that reaches only some of the sites
        return {"cannot": str(error)}
    took = time.perf_counter() - began
    assert job.plan is not None
    chosen: dict[str, int] = {}
    for one in job.plan.decisions:
        chosen[one.method or "dense"] = chosen.get(one.method or "dense", 0) + 1
    stored = sum(decision.stored for decision in job.plan.decisions)
    dense = sum(decision.dense for decision in job.plan.decisions)
    return {
        **losses_of(walks, job.blocks, job),
        "stored": stored / dense,
        "predicted": job.plan.predicted_loss,
        "seconds": took,
        "chosen": chosen,
        "decode": _decode(job),
    }


def _decode(job: Job) -> list[float]:
    """Return the ratios of tokens decoded per second to the dense model's, round by round."""
    folder = job.work / "model"
    folder.mkdir(parents=True)
    write_model(job, folder)
    models = [sources.model(job.source), sources.model(Source("small", folder, ""))]
    prompt = job.splits.report.ids[:1, :64]
    dense, small = speed(models, prompt, rounds=ROUNDS, new_tokens=NEW_TOKENS)
    return [one / other for one, other in zip(small.decode, dense.decode, strict=True)]


def _write(output: Path, labels: list[str]) -> None:
    """Write results.md: excess loss over the dense model, nats per token, with its spread."""
    rows = known_rows(output)
    dense = rows[" | dense | 1"]
    head = ["keep", "method", *WINDOWS, "perplexity, " + " / ".join(WINDOWS), "predicted",
            "decode, x dense", "seconds"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    perplexities = " / ".join(f"{math.exp(dense[text]['loss']):.1f}" for text in WINDOWS)
    lines.append(
        "| 100% | dense | " + " | ".join("" for _ in WINDOWS) + f" | {perplexities} | | | |"
    )
    for keep in sorted({row["keep"] for row in rows.values()} - {1.0}, reverse=True):
        for label in labels:
            if (row := rows.get(f" | {label} | {keep:g}")) is not None:
                lines.append(f"| {keep:.0%} | {label} | {_cells(row, dense)} |")
    windows = ", ".join(f"{count} of {name}" for name, count in WINDOWS.items())
    about = how_measured({row["commit"] for row in rows.values()}, windows)
    (output / "results.md").write_text("\n".join(lines) + "\n\n" + about + "\n")
    print((output / "results.md").read_text())


def _cells(row: dict[str, Any], dense: dict[str, Any]) -> str:
    if "cannot" in row:
        return row["cannot"] + " |" * (len(WINDOWS) + 3)
    perplexities = " / ".join(f"{math.exp(row[text]['loss']):.3g}" for text in WINDOWS)
    decode = sorted(row["decode"])
    return " | ".join(
        [
            *(excess_of(row[text], dense[text]) for text in WINDOWS),
            perplexities,
            f"{row['predicted']:.3f}",
            f"{decode[len(decode) // 2]:.2f} ({decode[0]:.2f} to {decode[-1]:.2f})",
            f"{row['seconds']:.0f}",
        ]
    )


if __name__ == "__main__":
    try:
        main()
    except SpectrimError as error:
        raise SystemExit(str(error)) from error
