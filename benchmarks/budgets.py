"""Predicted and measured loss over budgets, columns as paths through a trellis against plain codes.

    python benchmarks/budgets.py -o run/ --model rescaled/ [--sizes 25,20,15] [--ways paths,codes]
        [--minutes 30]

Every row is what `spectrim shrink --size "N% of linear bytes"` makes of the model where it need not try several ways, and the same without paths. Calibrated on the text that ships
with Spectrim; measured on its search split and on four texts. Rows are kept in the
run folder, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from front_bench import losses_on
from measuring import (
    arguments,
    commits_of,
    excess_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
    texts_of,
    two_halves,
)
from one_line_errors import told
from rounding_parts import MODELS

from spectrim.healing.minutes import Learning, learning_within
from spectrim.healing.student import student
from spectrim.job.dense_forms import dense_form
from spectrim.job.job import Job
from spectrim.job.loss import search_loss
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.stages import stages
from spectrim.text.tokens import Tokens

BITS = [2, 3, 4, 8]
WAYS = {"paths": True, "codes": False}
Row = dict[str, Any]


def main() -> None:
    """Make and measure all rows, resuming, and write budgets.json and results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the dense model's folder")
    parser.add_argument("--kind", choices=MODELS, default="rescaled", help="how it was made")
    parser.add_argument("--sizes", default="25,20,15", help="percent of the linear maps' bytes")
    parser.add_argument("--ways", default="paths,codes")
    parser.add_argument("--tokens", default="16x1024", help="of the calibration text")
    parser.add_argument("--minutes", type=float, default=0, help="that each may learn")
    asked = read_arguments(parser)
    source = sources.resolve(str(asked.model), asked.cache)
    _, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    texts = texts_of(source, second, asked.data, 6, 512)
    for way in asked.ways.split(","):
        for size in (float(one) for one in asked.sizes.split(",")):
            label = f"{asked.minutes:g} minutes"
            keep_row(asked.output, way, label, size, lambda w=way, s=size: row(asked, texts, w, s))
    _write(asked)


def recipe_of(asked: argparse.Namespace, way: str, size: float, learning: Learning) -> Recipe:
    """Return the recipe of a row; learning: what learns in it."""
    offered = {"cut": False, "bits": BITS, "trellis": WAYS[way], "rounding_losses": "estimated"}
    return Recipe.model_validate(
        {
            "model": str(asked.model), "keep": f"{size:g}% of linear bytes",
            "calibration": {"tokens": asked.tokens},
            "stages": [{"equalize": {}},
                       {"factorize": {"format": "low_rank", "refine": "off", **offered}},
                       {"quantize": {"ends": 8, **learning.options}}, *learning.stages],
        }
    )  # fmt: skip


def row(asked: argparse.Namespace, texts: dict[str, Tokens], way: str, size: float) -> Row:
    """Return what a size made so is predicted to lose, and what it loses."""
    recipe = recipe_of(asked, way, size, Learning({}, []))
    with shown() as progress:
        job = open_job(
            recipe, sources.resolve(str(asked.model), asked.cache), asked.cache, progress
        )
        job.work = asked.output / f"{way}-{size:g}-{asked.minutes:g}"
        dense = _losses(job, texts)
        equal, *others = recipe.stages
        stages.get(equal.name)(job, equal.options)
        job.statistics()
        if asked.minutes:
            learning = learning_within(job, asked.minutes)
            _, *others = recipe_of(asked, way, size, learning).stages
        began = time.perf_counter()
        for stage in others:
            stages.get(stage.name)(job, stage.options)
        seconds = time.perf_counter() - began
    assert job.plan is not None
    predicted = sum(one.predicted_loss for one in job.plan.decisions if one.block >= 0)
    found = _losses(job, texts)
    split = found["search split"]["loss"] - dense["search split"]["loss"]
    excess = {name: excess_of(found[name], dense[name]) for name in texts}
    steps = [one.options.steps for one in others if hasattr(one.options, "steps")]
    return {"minutes": asked.minutes, "steps": steps, "predicted": predicted, "search": split,
            "excess": excess, "seconds": seconds}  # fmt: skip


def _losses(job: Job, texts: dict[str, Tokens]) -> dict[str, Any]:
    """Return the losses of the model as it is now: of its search split, and of four texts."""
    model = student(job, dense_form).to(torch.bfloat16)
    found = {name: losses_on(model, windows) for name, windows in texts.items()}
    return {**found, "search split": {"loss": search_loss(job)}}


def _write(asked: argparse.Namespace) -> None:
    known = known_rows(asked.output)
    rows = [
        {"table": "budgets", "way": one["calibration"], "size": one["keep"],
         **{name: one[name] for name in
            ("minutes", "steps", "predicted", "search", "excess", "seconds")}}
        for one in known.values()
    ]  # fmt: skip
    said = publish(
        asked.output, "budgets", rows, commit=commits_of(known.values()), model=MODELS[asked.kind],
        text=f"calibrated on {asked.tokens} tokens of the text that ships with Spectrim; measured "
        "on its search split, and on 6 windows of 512 tokens of each of four texts",
        note="Excess over the dense model, nats per token; of one draw.",
    )  # fmt: skip
    print(said)


if __name__ == "__main__":
    told(main)
