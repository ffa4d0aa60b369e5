"""What few bits in embedding and head cost: the price that is bought by, and the loss measured.

    python benchmarks/end_prices.py -o run/ --models demo/,gemma/ [--tokens 24x512] [--windows 3]

Each table alone is stored in 2, 3, 4 and 8 bits, all else stays. The price comes of the search
split of the mixed text (benchmarks/mixed_text.py), the loss of four other texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from measuring import (
    arguments,
    excess_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
    texts_of,
    two_halves,
)
from mixed_text import mixed
from one_line_errors import told
from tables import markdown
from type_tables import end_prices

from spectrim.cutting.end_losses import end_losses, grid_of, metric_of
from spectrim.cutting.tables import with_rows
from spectrim.job.job import Job, end_sites
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.sites import Site
from spectrim.recipe.options import Factorize
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.rounding.embedding_and_head import TableRounding
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

BITS = (2, 3, 4, 8)


def main() -> None:
    """Price and measure all tables, resuming, and write end_prices.json."""
    parser = arguments(__doc__)
    parser.add_argument("--models", required=True, help="folders, joined by commas")
    parser.add_argument("--tokens", default="24x512", help="of the calibration text")
    parser.add_argument("--windows", type=int, default=3, help="of a text, 2 or more")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    asked = read_arguments(parser)
    rows: list[dict[str, Any]] = []
    for model in map(Path, asked.models.split(",")):
        rows += of_model(model, asked)
    windows = f"{asked.windows} of {asked.length} tokens of each text"
    publish(
        asked.output, "end_prices", rows, model=asked.models, windows=windows,
        text="calibrated on the mixed text of benchmarks/mixed_text.py",
    )  # fmt: skip
    print(markdown(end_prices(rows)))


def of_model(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every table of a model in each of the bits."""
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    text, _ = mixed(asked.data, first, asked.output)
    changes = {"model": str(folder), "keep": "50% of bytes", "calibration.text": str(text)}
    source = sources.resolve(str(folder), asked.cache)
    with shown() as progress:
        recipe = Recipe.build(None, {**changes, "calibration.tokens": asked.tokens})
        job = open_job(recipe, source, asked.cache, progress)
        prices = end_losses(job, Factorize(bits=BITS, ends=BITS))
    job.progress = lambda done, total, what: None
    walks = {
        name: job.walk(windows)
        for name, windows in texts_of(
            source, second, asked.data, asked.windows, asked.length
        ).items()
    }
    streams = {name: Stream(walk).through(walk.block) for name, walk in walks.items()}
    name = folder.name

    def dense() -> dict[str, Any]:
        return {text: losses(walks[text], one) for text, one in streams.items()}

    keep_row(asked.output, name, "dense", 1.0, dense)
    for site in end_sites(job):
        for bits in BITS:
            keep_row(asked.output, name, f"{site.role} {bits}", 1.0,
                     lambda site=site, bits=bits: measured(job, site, bits, streams))  # fmt: skip
    known = known_rows(asked.output)
    base = known[f"{name} | dense | 1"]
    found = []
    for site in end_sites(job):
        for bits, price in zip(BITS, prices[site.name], strict=True):
            row = known[f"{name} | {site.role} {bits} | 1"]
            excess = {text: excess_of(row[text], base[text]) for text in streams}
            mean = sum(one[0] for one in excess.values()) / len(excess)
            found.append({
                "table": "end_prices", "model": name, "role": site.role, "bits": bits,
                "excess": excess, "mean": mean, "predicted": price, "commit": row["commit"],
            })  # fmt: skip
    return found


def measured(job: Job, site: Site, bits: int, streams: dict[str, Stream]) -> dict[str, Any]:
    """Return the losses of every text with one table in so many bits."""
    name = f"{site.name}.weight"
    grid = grid_of(bits, Factorize().group)
    values = job.model.get_parameter(name).detach().float()
    parts = TableRounding(grid, metric_of(job, site.name))(values, job.weights.dtype())
    rounded = torch.cat([part.dequantize(grid.group) for part in parts])
    found = {}
    for text, dense in streams.items():
        other, small = with_rows(dense, name, rounded, job=job)
        found[text] = losses(other, small)
    return found


def losses(walk: BlockWalk, stream: Stream) -> dict[str, Any]:
    """Return the mean loss of a text and that of each window."""
    each = torch.cat([walk.losses(one, at) for at, one in stream.hidden.items()]).double()
    windows = each.view(len(walk.tokens), -1).mean(1)
    return {"loss": float(each.mean()), "windows": windows.tolist()}


if __name__ == "__main__":
    told(main)
