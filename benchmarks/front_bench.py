"""What benchmarks/front.py does with a row: the folder of its model, and what is measured on it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from measuring import keep_row, known_rows, texts_of, two_halves
from mixed_text import mixed
from rotated import chosen
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.files import key_of
from spectrim.metrics import Evaluation, Pair, harness, read
from spectrim.metrics.size import size, tensor_bytes
from spectrim.model import sites, sources
from spectrim.model.sources import Source
from spectrim.outputs.folder import output_folder
from spectrim.recipe.options import validate
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.text.tokens import Tokens
from spectrim.verbs.evaluate import refuse_used
from spectrim.verbs.shrink import shrink

HEALING = "the healing text"  # in a row's recipe: the file of it
TASKS = ("arc_easy", "winogrande", "copa")

How = dict[str, Any] | Callable[[Source, Path, float], None] | None
"""Entries of a recipe; or what writes the model of (source, folder, size); None: dense itself."""


class Row(NamedTuple):
    """One model: how it is made, and the part of the bf16 bytes of the linear maps to keep."""

    label: str
    how: How
    size: float

    @property
    def title(self) -> str:
        """Return the label with the size, which tells rows apart."""
        return f"{self.label} {self.size:.0%}"


@dataclass(frozen=True)
class Bench:
    """What all rows have in common.

    texts: what losses are measured on. calibration: that entry of every recipe.
    healing: the text that stages of a row train on.
    limit: items of each task, None for all. data: folder of the tasks' files.
    """

    source: Source
    texts: dict[str, Tokens]
    calibration: dict[str, str]
    healing: Path
    limit: int | None
    data: Path
    output: Path
    cache: Path

    @cached_property
    def dense(self) -> PreTrainedModel:
        """Return the dense model in the dtype that it is stored in."""
        return sources.model(self.source)

    def entries(self, row: Row) -> dict[str, Any]:
        """Return a recipe but for its model; a row's own entries come before what all share.

        An entry of None takes out what all share.
        """
        assert isinstance(row.how, dict)
        keep = f"{100 * row.size:g}% of linear"
        both = {"keep": keep, "calibration": self.calibration, **row.how}
        found = {key: value for key, value in both.items() if value is not None}
        said = json.dumps(found).replace(json.dumps(HEALING), json.dumps(str(self.healing)))
        return dict(json.loads(said))

    def made_key(self, row: Row) -> str:
        """Return a name for all that decides what a row's model is."""
        how = self.entries(row) if isinstance(row.how, dict) else named(row.how)
        files = Path(self.calibration["text"]), self.healing
        read = [file.read_text(encoding="utf-8") for file in files]
        return key_of(self.source.fingerprint, how, row.size, read)

    def measured_key(self, row: Row) -> str:
        """Return a name for all that decides a row's numbers."""
        texts = {name: windows.digest() for name, windows in self.texts.items()}
        return key_of(self.made_key(row), texts, self.limit, TASKS)[:12]

    def known(self, rows: Sequence[Row]) -> list[tuple[Row, dict[str, Any]]]:
        """Return the rows that are measured, each with its numbers."""
        kept = known_rows(self.output)
        keys = [f"{self.measured_key(row)} | {row.label} | {row.size:g}" for row in rows]
        return [(row, kept[key]) for row, key in zip(rows, keys, strict=True) if key in kept]


def opened(asked: argparse.Namespace) -> Bench:
    """Return the bench that the options ask for, the dense model made where it is not there."""
    if asked.windows < 2:
        raise SpectrimError(f"--windows {asked.windows} leaves no spread; ask for 2 or more")
    folder = chosen(asked)
    source = sources.resolve(str(folder), asked.cache)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    own, healing = mixed(asked.data, first, asked.output)
    text = {"WikiText-2": str(first), "mixed": str(own)}.get(asked.calibration, asked.calibration)
    return Bench(
        source,
        texts_of(source, second, asked.data, asked.windows, asked.length),
        {"text": text, "tokens": asked.tokens},
        healing,
        asked.limit or None,
        asked.data,
        asked.output,
        asked.cache,
    )


def run(bench: Bench, row: Row) -> None:
    """Make and measure a row unless an earlier run already has."""
    keep_row(
        bench.output, bench.measured_key(row), row.label, row.size,
        lambda: measured(bench, made(bench, row)),
    )  # fmt: skip


def made(bench: Bench, row: Row) -> Path:
    """Return the folder of a row's model, made where it is not there.

    Raises:
        SpectrimError: it cannot be made.
    """
    if row.how is None:
        return bench.source.folder
    name = f"{re.sub(r'[^0-9a-zA-Z]+', '_', row.label)}_{bench.made_key(row)[:8]}"
    folder = bench.output / "models" / name
    if (folder / "config.json").is_file():
        return folder
    if callable(row.how):
        with output_folder(folder, "front") as partial:
            row.how(bench.source, partial, row.size)
        return folder
    entries = {"model": str(bench.source.folder), **bench.entries(row)}
    recipe = validate(Recipe, entries, f"the recipe of '{row.title}'")
    with shown() as progress:
        return shrink(recipe, folder, cache=bench.cache, evaluate=False, progress=progress)


def measured(bench: Bench, folder: Path) -> dict[str, Any]:
    """Return losses by text and window, scores by task, and bytes of the model in a folder.

    Raises:
        SpectrimError: it was calibrated on a text that it is measured on.
    """
    for name, windows in bench.texts.items():
        refuse_used(windows, folder, name)
    small = Source(str(folder), folder, sources.fingerprint(folder))
    model = bench.dense if folder == bench.source.folder else sources.model(small)
    losses = {name: losses_on(model, windows) for name, windows in bench.texts.items()}
    return {**losses, "tasks": answers(bench, small, model), **bytes_of(model, folder)}


def losses_on(model: PreTrainedModel, windows: Tokens) -> dict[str, Any]:
    """Return the mean loss, nats per token, and that of each window."""
    reading = read([model], windows.ids)
    each = reading.losses[0] / reading.tokens
    return {"loss": float(each.mean()), "windows": each.tolist()}


def answers(bench: Bench, small: Source, model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Return lm-eval's scores by task and name, with what changed from the dense model."""
    same = model is bench.dense
    held = {"dense": bench.dense} if same else {"dense": bench.dense, "small": model}
    chosen = Evaluation(
        suite="full",
        tasks=TASKS,
        limit=bench.limit,
        data=bench.data,
        cache=bench.cache,
        identities={"dense": bench.source.fingerprint, "small": small.fingerprint},
    )
    pair = Pair(held, {}, chosen, None, sources.tokenizer(bench.source))
    found: dict[str, dict[str, Any]] = {}
    for score in harness.measure(pair)["dense" if same else "small"]:
        said = {"value": score.value, "interval": score.interval, "n": score.n}
        found.setdefault(score.settings["task"], {})[score.name] = said
    return found


def bytes_of(model: PreTrainedModel, folder: Path) -> dict[str, int]:
    """Return the bytes that the file holds of the blocks' linear maps, and in all."""
    counted = size(model, folder)
    inside = tuple(f"{site.name}." for site in sites.find(model) if site.block >= 0)
    linear = sum(held for name, held in tensor_bytes(folder).items() if name.startswith(inside))
    assert counted.bytes_of_weights is not None
    return {
        "linear_bytes": linear,
        "linear_numbers": counted.linear_numbers,
        "bytes": counted.bytes_of_weights,
    }


def named(how: How) -> str:
    """Return the name of what makes a model; its code may change unseen, so rename it then."""
    return f"{how.__module__}.{how.__qualname__}" if callable(how) else "dense"
