"""What memory each way to train the smaller model takes: one process each, one table.

    python benchmarks/healing_memory.py -o run/

The demo model off its grid (rotated.py), cut to 60 % of its linear numbers, then trained for a few
steps on mixed text by distil (AdamW), lora and low_memory. Each peak is the kernel's own mark
of the process (VmHWM), set back when the stage begins; "beside" is what it adds to what the process
held then, libraries and all. What is cached is made by a first run that does not count. Linux with
glibc only. How well they heal is heal.py's affair.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from measuring import (
    ROTATED,
    arguments,
    commits_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
    two_halves,
)
from mixed_text import mixed
from one_line_errors import told
from rotated import chosen

from spectrim.errors import SpectrimError
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.processes import peak
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.stages import stages

KEEP = "60% of linear"
CUT = {"method": "loss_aware_svd,loss_aware_neuron_selection", "refine": "off"}
SHORT = {"tokens": "8x512", "steps": 4, "batch": 1, "every": 2, "warmup": 1}
TRAINED: dict[str, dict[str, Any]] = {
    "distil": {"distil": SHORT},
    "lora, rank 16": {"lora": SHORT},
    "low_memory, AdaLomo": {"low_memory": SHORT},
    "low_memory, LOMO": {"low_memory": {**SHORT, "optimizer": "lomo", "learning_rate": 1e-3}},
}
MARK = Path("/proc/self/clear_refs")
SET_BACK = "5"  # of the kernel's: the peak becomes what is resident now


def main() -> None:
    """Run every stage in a process of its own, resuming, and write results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rotated")
    asked = read_arguments(parser)
    if not MARK.exists():
        raise SpectrimError("the kernel keeps no mark of memory here; take a Linux machine")
    folder = chosen(asked)
    first, _ = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    calibration, healing = mixed(asked.data, first, asked.output)
    warm = not known_rows(asked.output)
    for label, stage in TRAINED.items():
        ((name, options),) = stage.items()
        recipe = Recipe.model_validate(
            {
                "model": str(folder), "keep": KEEP,
                "stages": [{"factorize": CUT}, {name: {**options, "text": str(healing)}}],
                "calibration": {"text": str(calibration), "tokens": "48x1024"},
            }
        )  # fmt: skip
        if warm:
            _apart(asked, recipe)
            warm = False
        keep_row(
            asked.output, SHORT["tokens"], label, 0.6,
            lambda recipe=recipe: _apart(asked, recipe),  # type: ignore[misc]
        )  # fmt: skip
    _write(asked.output)


def _apart(asked: argparse.Namespace, recipe: Recipe) -> dict[str, int]:
    """Return what ``trained`` returns, in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(trained, recipe, asked.cache, asked.output / "work").result()


def trained(recipe: Recipe, cache: Path, work: Path) -> dict[str, int]:
    """Return the bytes resident before the last stage of a recipe, and its peak."""
    with shown() as progress:
        job = open_job(recipe, sources.resolve(recipe.model, cache), cache, progress)
        job.work = work
        job.statistics()
        *earlier, last = recipe.stages
        for stage in earlier:
            stages.get(stage.name)(job, stage.options)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        MARK.write_text(SET_BACK)
        before = psutil.Process().memory_info().rss
        stages.get(last.name)(job, last.options)
    shutil.rmtree(work)
    return {"before": before, "peak": peak()}


def _write(output: Path) -> None:
    known = known_rows(output)
    plain = next(iter(known.values()))
    rows = []
    for row in known.values():
        beside = row["peak"] - row["before"]
        rows.append(
            {"table": "memory", "label": row["label"], "peak_mb": row["peak"] / 1e6,
             "beside_mb": beside / 1e6, "of_distil": beside / (plain["peak"] - plain["before"])}
        )  # fmt: skip
    text = "four steps of one sequence of 512 tokens of mixed text"
    commit = commits_of(known.values())
    print(publish(output, "memory", rows, model=ROTATED, text=text, commit=commit))


if __name__ == "__main__":
    told(main)
