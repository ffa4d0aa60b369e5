"""Every method at four sizes, and all of them together: one run, one table (docs/results.md).

    python benchmarks/methods.py -o run/ [--keeps 0.8,0.6,0.9,0.4] [--methods a,b]

The named methods one by one, then all of these together.

Calibrates on the first half of WikiText-2 validation, measures on windows of its second half and of
C4, without healing or refinement, in the checkpoint's bf16. Decode speed is the median ratio to the
dense model over rounds that take turns. Every row is kept, so that an interrupted run continues.
"""

from __future__ import annotations

import math
import shutil
import time
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

from spectrim.errors import SpectrimError
from spectrim.job.job import Budget, Job
from spectrim.job.output import write_model
from spectrim.methods import methods
from spectrim.metrics.speed import speed
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.recipe.options import Factorize
from spectrim.stages.factorize import factorize
from spectrim.text.tokens import Tokens

WINDOWS = {"WikiText-2": 8, "C4": 6}
LENGTH = 512  # tokens of a window
ROUNDS, NEW_TOKENS = 3, 24


def main() -> None:
    """Measure all rows, resuming, and write results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--keeps", default="0.8,0.6,0.9,0.4")
    parser.add_argument("--methods", default=",".join(methods.names()))
    asked = read_arguments(parser)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    job = open_demo(str(first), asked.cache, asked.output)
    texts = windows_of(job, second, asked.data)
    walks = {
        name: job.walk(Tokens.full(texts[name].ids[:n, :LENGTH])) for name, n in WINDOWS.items()
    }
    keep_row(asked.output, "", "dense", 1.0, lambda: losses_of(walks, None, job))
    rows = [*asked.methods.split(","), asked.methods]
    for names in rows:
        for keep in (float(keep) for keep in asked.keeps.split(",")):
            keep_row(
                asked.output, "", names, keep,
                lambda keep=keep, names=names: _shrunk(job, walks, keep, names),  # type: ignore[misc]
            )  # fmt: skip
    _write(asked.output)


def _shrunk(job: Job, walks: dict[str, Any], keep: float, names: str) -> dict[str, Any]:
    job.budget, job.plan, job.blocks = Budget(keep, "linear"), None, None
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


def _write(output: Path) -> None:
    """Publish the excess loss over the dense model, nats per token, with its spread."""
    known = known_rows(output)
    dense = known[" | dense | 1"]
    first = {"table": "methods", "keep": 1.0, "label": "dense", "stored": 1.0}
    rows = [first | {"perplexity": _perplexities(dense)}]
    for row in sorted(known.values(), key=lambda row: -row["keep"]):
        if row["keep"] < 1 and "cannot" not in row:
            rows.append(_line(row, dense))
    windows = ", ".join(f"{count} of {name}" for name, count in WINDOWS.items())
    cannot = [f"{one['label']}: {one['cannot']}" for one in known.values() if "cannot" in one]
    said = publish(
        output, "methods", [*rows, *_mixed_against_single(known)],
        commit=commits_of(known.values()), windows=f"{LENGTH} tokens: {windows}",
        note=" ".join(cannot),
    )  # fmt: skip
    print(said)


def _perplexities(row: dict[str, Any]) -> list[float]:
    return [math.exp(row[text]["loss"]) for text in WINDOWS]


def _line(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    label = row["label"]
    if "," in label:
        label = f"{label.count(',') + 1} methods, the best for each site"
    decode = sorted(row["decode"])
    return {
        "table": "methods",
        "keep": row["keep"],
        "label": label,
        "stored": row["stored"],
        "excess": {text: excess_of(row[text], dense[text]) for text in WINDOWS},
        "perplexity": _perplexities(row),
        "predicted": row["predicted"],
        "decode": [decode[len(decode) // 2], decode[0], decode[-1]],
        "seconds": row["seconds"],
    }


def _mixed_against_single(known: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the loss of several methods together beside the best of these alone, paired."""
    found = []
    for row in known.values():
        names = row["label"].split(",")
        alone = [
            known[key]
            for name in names
            if (key := f" | {name} | {row['keep']:g}") in known and "cannot" not in known[key]
        ]
        if len(names) < 2 or "cannot" in row or not alone:
            continue
        for one in sorted(alone, key=lambda one: float(one["WikiText-2"]["loss"]))[:3]:
            difference = {text: excess_of(row[text], one[text]) for text in WINDOWS}
            about = {"keep": row["keep"], "methods": len(names), "alone": one["label"]}
            found.append({"table": "mixed", **about, "difference": difference})
    return found


if __name__ == "__main__":
    told(main)
