"""What the benchmarks share: the texts, the losses of a job's blocks, and rows that are kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import run_files
import tables
import torch
import transformers
from scipy import stats

from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.text import documents
from spectrim.text.tokens import Tokens, refuse_overlap
from spectrim.walk.stream import Stream

OUTSIDE = {
    "C4": "lm/exllamav2_cal/c4.utf8",
    "code": "lm/exllamav2_cal/code.utf8",
    "novel": "lm/gutenberg/pride_and_prejudice_1342.txt",
}
DEMO = "demo (SmolLM2-135M-Instruct), bf16"
ROTATED = "demo off its 4-bit grid (benchmarks/rotated.py), bf16"
Row = dict[str, Any]


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Return the options of every benchmark: -o, --data and --cache."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SPECTRIM_DATA", "../shared/data"))
    )
    parser.add_argument("--cache", type=Path, default=sources.default_cache())
    return parser


def read_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return what was asked, its output folder made; ends where there are no texts."""
    asked = parser.parse_args()
    if not asked.data.is_dir():
        raise SystemExit(f"no texts in {asked.data}; set SPECTRIM_DATA to their folder")
    asked.output.mkdir(parents=True, exist_ok=True)
    return asked


def two_halves(whole: Path, output: Path) -> tuple[Path, Path]:
    """Write the two halves of a text, parted at an article, beside the results."""
    content = whole.read_text(encoding="utf-8")
    middle = content.index("\n = ", len(content) // 2)
    first, second = output / "wikitext2_first.txt", output / "wikitext2_second.txt"
    first.write_text(content[:middle], encoding="utf-8")
    second.write_text(content[middle:], encoding="utf-8")
    return first, second


def open_demo(calibration: str, cache: Path, output: Path, tokens: str | None = None) -> Job:
    """Return a job on the demo model, its text read and its statistics collected."""
    if calibration != "default":  # which has a size of its own
        tokens = tokens or "48x1024"
    changes = {"model": "demo", "calibration.text": calibration, "calibration.tokens": tokens}
    source = sources.resolve("demo", cache)
    with shown() as progress:
        job = open_job(Recipe.build(None, changes), source, cache, progress)
        job.work = output / "work"
        job.statistics()
    job.progress = lambda done, total, what: None
    return job


def windows_of(job: Job, second: Path, data: Path) -> dict[str, Tokens]:
    """Return the windows to measure on; none may occur in the calibration text."""
    texts = texts_of(job.source, second, data)
    for name, windows in texts.items():
        refuse_overlap(job.splits.calibration, windows, f"calibration and {name}")
    return texts


def texts_of(
    source: Source, second: Path, data: Path, most: int = 16, length: int = 1024
) -> dict[str, Tokens]:
    """Return 16 windows of WikiText-2 and 6 of each other text, and at most so many of each."""
    tokenizer = sources.tokenizer(source)
    wiki = documents.read(str(second), tokenizer, length)
    texts = {"WikiText-2": Tokens.full(wiki.ids[: min(16, most)])}
    for name, path in OUTSIDE.items():
        windows = documents.read(str(data / path), tokenizer, length)
        texts[name] = Tokens.full(windows.ids[2 : 2 + min(6, most)])
    return texts


def losses_of(walks: dict[str, Any], blocks: Path | None, job: Job) -> dict[str, Any]:
    """Return mean loss and its standard error over windows, per text."""
    found: dict[str, Any] = {}
    for name, walk in walks.items():
        load = walk.block
        if blocks is not None:
            load = lambda place, w=walk: job.stored_block(blocks, place, w.dtype)  # noqa: E731
        losses = Stream(walk).through(load).losses().double()
        each = losses.view(len(walk.tokens), -1).mean(1)
        found[name] = {"loss": float(losses.mean()), "windows": each.tolist()}
    return found


def keep_row(output: Path, calibration: str, label: str, keep: float, make: Any) -> None:
    """Measure a row unless an earlier run already has."""
    known = known_rows(output)
    key = f"{calibration} | {label} | {keep:g}"
    if key in known:
        return
    about = {"calibration": calibration, "label": label, "keep": keep, "commit": commit_here()}
    known[key] = {**about, **make()}
    partial = output / "rows.partial"
    partial.write_text(json.dumps(known, indent=1))
    partial.replace(output / "rows.json")
    losses = {k: v["loss"] for k, v in known[key].items() if isinstance(v, dict) and "loss" in v}
    print(key, losses, flush=True)


def known_rows(output: Path) -> dict[str, Any]:
    """Return the rows that are known, by calibration, label and size."""
    path = output / "rows.json"
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def excess_of(row: dict[str, Any], dense: dict[str, Any]) -> list[float]:
    """Return the mean excess over another row, paired by window, and half its 95 % interval (t)."""
    paired = torch.tensor(row["windows"], dtype=torch.float64) - torch.tensor(
        dense["windows"], dtype=torch.float64
    )
    wide = float(stats.t.ppf(0.975, len(paired) - 1)) * float(paired.std()) / len(paired) ** 0.5
    return [float(paired.mean()), wide]


def commit_here() -> str:
    """Return the commit that is measured."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip()


def publish(output: Path, name: str, rows: list[Row], **about: Any) -> str:
    """Write a run as NAME.json into ``output``, its tables as results.md, and return these.

    about: what run_files.py says of a run, where it is not the usual: model, text, windows, note.
    """
    run = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit_here(),
        "seed": 0,
        "machine": machine(),
        "model": DEMO,
        "text": "",
        "error": "its 95 % interval over windows (t)",
        **about,
        "rows": rows,
    }
    run_files.write(run, output / f"{name}.json")
    said = tables.whole(name, run)
    (output / "results.md").write_text(said, encoding="utf-8")
    return said


def machine() -> dict[str, Any]:
    """Return the machine and the versions that a run has."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "arch": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commits_of(rows: Iterable[Row]) -> str:
    """Return the commits of which rows are."""
    return ", ".join(sorted({row["commit"] for row in rows}))
