"""What each part of the default pays: one run, one machine, one table (docs/results.md).

    python benchmarks/parts.py -o run/ [--keeps 0.9,0.8,0.6]

Calibrates on the first half of WikiText-2 validation, measures on windows of its second half and on
texts unlike it, without healing, in the checkpoint's bf16; then once more with the default
calibration text. Every row is kept in the run folder, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from spectrim import sources, text
from spectrim.calibration import Tokens, refuse_overlap
from spectrim.errors import SpectrimError
from spectrim.job import Job
from spectrim.options import Factorize
from spectrim.pipeline import open_job
from spectrim.prediction import prediction
from spectrim.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.stages.factorize import factorize

PUBLISHED = {"method": "whitened_svd", "allocator": "uniform", "rank_multiple": 1}
ROWS: dict[str, dict[str, Any]] = {
    "whitened, uniform, two factors (SVD-LLM)": {**PUBLISHED, "format": "low_rank"},
    "+ pivoted storage": {**PUBLISHED, "format": "pivoted"},
    "+ two-sided": {"allocator": "uniform", "rank_multiple": 1},
    "+ global": {},
    "+ refinement": {"refine": "on"},
}

OUTSIDE = {
    "C4": "lm/exllamav2_cal/c4.utf8",
    "code": "lm/exllamav2_cal/code.utf8",
    "novel": "lm/gutenberg/pride_and_prejudice_1342.txt",
}


def main() -> None:
    """Measure all rows, resuming, and write results.json and results.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SPECTRIM_DATA", "../shared/data"))
    )
    parser.add_argument("--keeps", default="0.9,0.8,0.6")
    parser.add_argument("--cache", type=Path, default=sources.default_cache())
    parser.add_argument("--calibrations", default="WikiText-2,default")
    asked = parser.parse_args()
    if not asked.data.is_dir():
        raise SystemExit(f"no texts in {asked.data}; set SPECTRIM_DATA to their folder")
    asked.output.mkdir(parents=True, exist_ok=True)
    halves = _halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    keeps = [float(keep) for keep in asked.keeps.split(",")]
    for name in asked.calibrations.split(","):
        calibration = str(halves[0]) if name == "WikiText-2" else name
        job = _job(calibration, asked.cache, asked.output)
        texts = _texts(job, halves[1], asked.data)
        _measure_all(job, name, texts, keeps, asked.output)
    _write(asked.output, keeps)


def _halves(whole: Path, output: Path) -> tuple[Path, Path]:
    """Write the two halves of a text, parted at an article, beside the results."""
    content = whole.read_text(encoding="utf-8")
    middle = content.index("\n = ", len(content) // 2)
    first, second = output / "wikitext2_first.txt", output / "wikitext2_second.txt"
    first.write_text(content[:middle], encoding="utf-8")
    second.write_text(content[middle:], encoding="utf-8")
    return first, second


def _job(calibration: str, cache: Path, output: Path) -> Job:
    changes = {"model": "demo", "calibration.text": calibration, "calibration.tokens": "48x1024"}
    source = sources.resolve("demo", cache)
    with shown() as progress:
        job = open_job(Recipe.build(None, changes), source, cache, progress)
        job.work = output / "work"
        job.statistics()
    job.progress = lambda done, total, what: None
    return job


def _texts(job: Job, second: Path, data: Path) -> dict[str, Tokens]:
    """Return the windows to measure on; none may occur in the calibration text."""
    tokenizer = sources.tokenizer(job.source)
    wiki = text.read(str(second), tokenizer, 1024)
    texts = {"WikiText-2": Tokens.full(wiki.ids[:16])}
    for name, path in OUTSIDE.items():
        windows = text.read(str(data / path), tokenizer, 1024)
        texts[name] = Tokens.full(windows.ids[2:8])
    for name, windows in texts.items():
        refuse_overlap(job.splits.calibration, windows, f"calibration and {name}")
    return texts


def _measure_all(
    job: Job, calibration: str, texts: dict[str, Tokens], keeps: list[float], output: Path
) -> None:
    walks = {name: job.walk(windows) for name, windows in texts.items()}
    _kept(output, calibration, "dense", 1.0, lambda: _losses(walks, None, job))
    rows = (
        ROWS
        if calibration != "default"
        else {"the default (refinement where it helps)": {"refine": "auto"}}
    )
    for keep in keeps:
        for label, options in rows.items():
            _kept(
                output, calibration, label, keep,
                lambda keep=keep, options=options: _shrunk(job, walks, keep, options),  # type: ignore[misc]
            )  # fmt: skip
    _kept(output, calibration, "prediction", 0.0, lambda: prediction(job, Factorize()))


def _shrunk(
    job: Job, walks: dict[str, Any], keep: float, options: dict[str, Any]
) -> dict[str, Any]:
    job.keep, job.plan, job.blocks = (keep, "linear"), None, None
    shutil.rmtree(job.work, ignore_errors=True)
    began = time.perf_counter()
    factorize(job, Factorize(**{"refine": "off", **options}))
    took = time.perf_counter() - began
    assert job.plan is not None
    stored = sum(decision.stored for decision in job.plan.decisions)
    dense = sum(decision.dense for decision in job.plan.decisions)
    found = _losses(walks, job.blocks, job)
    found.update(
        stored=stored / dense, predicted=job.plan.predicted_loss, seconds=took,
        refinement=job.notes.pop("refinement", None),
    )  # fmt: skip
    return found


def _losses(walks: dict[str, Any], blocks: Path | None, job: Job) -> dict[str, Any]:
    """Return mean loss and its standard error over windows, per text."""
    found: dict[str, Any] = {}
    for name, walk in walks.items():
        load = walk.block
        if blocks is not None:
            load = lambda stack, index, w=walk: job.stored_block(blocks, stack, index, w.dtype)  # noqa: E731
        losses = walk.sweep(load).double()
        each = losses.view(len(walk.tokens), -1).mean(1)
        found[name] = {"loss": float(losses.mean()), "windows": each.tolist()}
    return found


def _kept(output: Path, calibration: str, label: str, keep: float, make: Any) -> None:
    """Measure a row unless an earlier run already has."""
    rows = _rows(output)
    key = f"{calibration} | {label} | {keep:g}"
    if key in rows:
        return
    about = {"calibration": calibration, "label": label, "keep": keep, "commit": _commit()}
    rows[key] = {**about, **make()}
    partial = output / "rows.partial"
    partial.write_text(json.dumps(rows, indent=1))
    partial.replace(output / "rows.json")
    losses = {k: v["loss"] for k, v in rows[key].items() if isinstance(v, dict) and "loss" in v}
    print(key, losses, flush=True)


def _rows(output: Path) -> dict[str, Any]:
    path = output / "rows.json"
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def _write(output: Path, keeps: list[float]) -> None:
    """Write results.md: excess loss over the dense model, nats per token, with its spread."""
    rows = _rows(output)
    texts = ["WikiText-2", *OUTSIDE]
    dense = rows["WikiText-2 | dense | 1"]
    lines = [
        "| calibration | keep | row | stored | " + " | ".join(texts)
        + " | perplexity, WikiText-2 | part of the published excess |",
        "|---|---|---|---|" + "---|" * len(texts) + "---|---|",
        "| | 100 % | dense (loss) | 100 % | "
        + " | ".join(f"{dense[t]['loss']:.3f}" for t in texts)
        + f" | {math.exp(dense['WikiText-2']['loss']):.1f} | |",
    ]  # fmt: skip
    for row in sorted(rows.values(), key=lambda row: -row["keep"]):
        if "stored" not in row:
            continue
        published = rows.get(f"WikiText-2 | {next(iter(ROWS))} | {row['keep']:g}")
        cells = [_excess(row[t], dense[t]) for t in texts]
        parts = " / ".join(
            f"{(row[t]['loss'] - dense[t]['loss']) / (published[t]['loss'] - dense[t]['loss']):.3f}"
            for t in texts
        ) if published else ""  # fmt: skip
        lines.append(
            f"| {row['calibration']} | {row['keep']:.0%} | {row['label']} | {row['stored']:.1%} | "
            + " | ".join(cells)
            + f" | {math.exp(row['WikiText-2']['loss']):.1f} | {parts} |"
        )  # fmt: skip
    (output / "results.md").write_text(
        "\n".join(lines) + "\n\n" + _how({row["commit"] for row in rows.values()}) + "\n"
    )
    print((output / "results.md").read_text())


def _excess(row: dict[str, Any], dense: dict[str, Any]) -> str:
    paired = torch.tensor(row["windows"]) - torch.tensor(dense["windows"])
    return f"{float(paired.mean()):.3f} ± {1.96 * float(paired.std()) / len(paired) ** 0.5:.3f}"


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip()


def _how(commits: set[str]) -> str:
    return (
        "Excess loss over the dense model, nats per token ± 1.96 standard errors over windows. "
        "Windows of 1024 tokens: 16 of WikiText-2, 6 of each other text; seed 0; bf16; "
        f"{torch.get_num_threads()} threads, {platform.machine()}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; commits {', '.join(sorted(commits))}."
    )


if __name__ == "__main__":
    try:
        main()
    except SpectrimError as error:
        raise SystemExit(str(error)) from error
