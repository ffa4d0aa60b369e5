"""Models at a part of the whole file's bytes: embedding and head bought along, or in 8 bits.

    python benchmarks/whole_file.py -o run/ --model gemma/ [--sizes 34,25] [--tokens 24x512]

Each model is rounded by `shrink` without healing; the maps get bits, no ranks are cut. With the
ends in 8 bits the maps have what these leave of the same bytes; where that is too little, no row is
made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from front_bench import losses_on
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
from type_tables import whole_file

from spectrim.metrics.size import bytes_on_disk
from spectrim.model import sources
from spectrim.model.sites import find
from spectrim.model.weights import Weights
from spectrim.plan import Plan
from spectrim.recipe.recipe import Keep, Recipe
from spectrim.report.progress import shown
from spectrim.verbs.comparison import small_model
from spectrim.verbs.shrink import shrink

BITS = [2, 3, 4, 8]
BOUGHT, FIXED = "bought along", "8 bits"
LEAST = 0.13  # of the maps' bytes: less than two bits a number


def main() -> None:
    """Make and measure all rows, resuming, and write whole_file.json."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sizes", default="34,25", help="percent of the bytes of the file")
    parser.add_argument("--tokens", default="24x512", help="of the calibration text")
    parser.add_argument("--windows", type=int, default=4, help="of a text, 2 or more")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    asked = read_arguments(parser)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    text, _ = mixed(asked.data, first, asked.output)
    source = sources.resolve(str(asked.model), asked.cache)
    texts = texts_of(source, second, asked.data, asked.windows, asked.length)
    calibration = {"text": str(text), "tokens": asked.tokens}
    name = asked.model.name

    def dense() -> dict[str, Any]:
        model = sources.model(source)
        return {one: losses_on(model, windows) for one, windows in texts.items()}

    keep_row(asked.output, name, "dense", 1.0, dense)
    for size in map(float, asked.sizes.split(",")):
        for way in (BOUGHT, FIXED):
            recipe = recipe_of(asked.model, size, way, calibration, source)
            if recipe is None:
                continue

            def made(recipe: Recipe = recipe, size: float = size, way: str = way) -> dict[str, Any]:
                folder = asked.output / f"{size:g} {way}".replace(" ", "-")
                with shown() as progress:
                    shrink(recipe, folder, cache=asked.cache, evaluate=False, progress=progress)
                model = small_model(folder)
                found = {one: losses_on(model, windows) for one, windows in texts.items()}
                return {**found, **about(folder)}

            keep_row(asked.output, name, way, size, made)
    windows = f"{asked.windows} of {asked.length} tokens of each text"
    rows = lines(asked.output, name, list(texts))
    publish(
        asked.output, "whole_file", rows, model=name, windows=windows,
        text="calibrated on the mixed text of benchmarks/mixed_text.py",
    )  # fmt: skip
    print(markdown(whole_file(rows)))


def recipe_of(
    model: Path, size: float, way: str, calibration: dict[str, str], source: sources.Source
) -> Recipe | None:
    """Return the recipe of a row; None where embedding and head leave the maps too little."""
    keep, factorize = Keep.parse(f"{size}%"), {"bits": BITS, "cut": False, "refine": "off"}
    ends = 0
    if way == BOUGHT:
        factorize["ends"] = BITS
    else:
        part = left_to_maps(source, keep)
        if part < LEAST:
            return None
        keep, ends = Keep(fraction=part, of="linear bytes"), 8
    return Recipe.model_validate({
        "model": str(model), "keep": str(keep), "calibration": calibration,
        "stages": [{"factorize": factorize}, {"quantize": {"ends": ends}}],
    })  # fmt: skip


def left_to_maps(source: sources.Source, keep: Keep) -> float:
    """Return which part of their bytes the maps may take, embedding and head in 8 bits."""
    skeleton = sources.skeleton(source)
    weights, sites = Weights(source.folder, skeleton), find(skeleton)
    width = weights.dtype().itemsize
    maps = width * sum(s.out_features * s.in_features for s in sites if s.block >= 0)
    ends = width * sum(s.out_features * s.in_features for s in sites if s.block < 0)
    steps = width * sum(s.out_features for s in sites if s.block < 0)
    others = weights.bytes() - maps - ends
    return (keep.fraction * weights.bytes() - others - ends / width - steps) / maps


def about(folder: Path) -> dict[str, Any]:
    """Return the bytes of a model, what was predicted, and the bits of embedding and head."""
    plan = Plan.read(folder / "plan.json")
    ends = {one.role: one.bits for one in plan.decisions if one.block < 0}
    note = plan.about["found"]["quantized"]
    predicted = note["predicted_loss"] + note.get("predicted_of_tables", 0.0)
    mean = sum(one.bits * one.dense for one in plan.decisions if one.block >= 0)
    numbers = sum(one.dense for one in plan.decisions if one.block >= 0)
    return {
        "bytes": bytes_on_disk(folder), "ends": ends or {"both": 8}, "predicted": predicted,
        "bits": mean / numbers,
    }  # fmt: skip


def lines(output: Path, name: str, texts: list[str]) -> list[dict[str, Any]]:
    """Return the rows of the run."""
    rows = known_rows(output)
    base = rows.pop(f"{name} | dense | 1")
    found = []
    for row in rows.values():
        excess = {text: excess_of(row[text], base[text]) for text in texts}
        found.append({
            "table": "whole_file", "model": name, "keep": row["keep"] / 100, "way": row["label"],
            "bytes": row["bytes"], "ends": row["ends"], "bits": row["bits"], "excess": excess,
            "mean": sum(one[0] for one in excess.values()) / len(excess),
            "predicted": row["predicted"], "commit": row["commit"],
        })  # fmt: skip
    return found


if __name__ == "__main__":
    told(main)
