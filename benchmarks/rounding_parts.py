"""What each part of the rounding pays: GPTQ as it is known, and with what quantize adds to it.

    python benchmarks/rounding_parts.py -o run/ --model rescaled/ [--bits 3,2] [--blocks 8-11]

Every row rounds the same maps of the dense model, all or those of some blocks, in groups of 64 with
the same calibration text, and is measured on the texts of benchmarks/front.py. Rows are kept in
the run folder, so that an interrupted run continues.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cells import around
from front_bench import Bench, Row, losses_on, made, opened
from measuring import (
    arguments,
    commits_of,
    excess_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
)
from one_line_errors import told
from tables import markdown

from spectrim.model import sources
from spectrim.model.sources import Source

EQUAL = "columns alike"  # the stage equalize in front
PARTS: dict[str, dict[str, Any]] = {
    "GPTQ": {"inputs": "dense", "cycles": 0},
    f"+ {EQUAL}": {"inputs": "dense", "cycles": 0},
    "+ codes and scales in turn": {"inputs": "dense"},
    "+ delivered inputs": {"cycles": 0},
    f"all, {EQUAL}": {},
}
MODELS = {
    "rescaled": "demo off its 4-bit grid, not turned (benchmarks/rescaled.py), bf16",
    "rotated": "demo off its 4-bit grid, turned (benchmarks/rotated.py), bf16",
}


def main() -> None:
    """Make and measure all rows, resuming, and write rounding_parts.json and results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rotated")
    parser.add_argument("--kind", choices=MODELS, default="rescaled", help="how it was made")
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--blocks", default="", help="first and last, as in 8-11; all")
    parser.add_argument("--rows", default="", help="parts of labels; all")
    parser.add_argument("--calibration", default="mixed", help="mixed, WikiText-2 or a file")
    parser.add_argument("--tokens", default="48x1024", help="of the calibration text")
    parser.add_argument("--windows", type=int, default=6, help="of a text at most, 2 or more")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.set_defaults(limit=0)
    asked = read_arguments(parser)
    bench = opened(asked)
    blocks = asked.blocks or "all"
    keep_row(asked.output, "dense", "dense", 0, lambda: _losses(bench, bench.source.folder))
    for bits in (int(one) for one in asked.bits.split(",")):
        for label, options in PARTS.items():
            if any(part in label for part in asked.rows.split(",")):
                recipe = _recipe(bits, options, asked.blocks, equal=EQUAL in label)
                keep_row(
                    asked.output, blocks, label, bits,
                    lambda recipe=recipe, label=label, bits=bits: _measured(  # type: ignore[misc]
                        bench, Row(f"{label} {blocks}", recipe, bits / 16)
                    ),
                )  # fmt: skip
    _write(asked.output, MODELS[asked.kind], asked.windows, asked.length)


def _recipe(bits: int, options: dict[str, Any], blocks: str, *, equal: bool) -> dict[str, Any]:
    stage = {"bits": bits, **options}
    if blocks:
        first, _, last = blocks.partition("-")
        within = "|".join(str(one) for one in range(int(first), int(last or first) + 1))
        stage["protect"] = [rf"block (?!({within})$)\d+$"]
    return {"keep": None, "stages": [*["equalize"] * equal, {"quantize": stage}]}


def _measured(bench: Bench, row: Row) -> dict[str, Any]:
    began = time.process_time()
    folder = made(bench, row)
    return {"seconds": time.process_time() - began, **_losses(bench, folder)}


def _losses(bench: Bench, folder: Path) -> dict[str, Any]:
    same = folder == bench.source.folder
    model = bench.dense if same else sources.model(Source(str(folder), folder, ""))
    return {name: losses_on(model, windows) for name, windows in bench.texts.items()}


def _write(output: Path, model: str, windows: int, length: int) -> None:
    """Publish the excess over the dense model, nats per token, with its spread over windows."""
    known = known_rows(output)
    dense = known["dense | dense | 0"]
    texts = [name for name, found in dense.items() if isinstance(found, dict)]
    rows = [
        {"table": "rounding_parts", "blocks": row["calibration"], "bits": row["keep"],
         "label": row["label"], "excess": {one: excess_of(row[one], dense[one]) for one in texts},
         "seconds": row["seconds"]}
        for row in known.values() if row["keep"]
    ]  # fmt: skip
    publish(
        output, "rounding_parts", rows, commit=commits_of(known.values()), model=model,
        text="the mixed calibration text of benchmarks/front.py, 48x1024",
        windows=f"{length} tokens: at most {windows} of each text",
    )  # fmt: skip
    print(markdown(_lines(rows)))


def _lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table of what each part pays, the first of them the head."""
    names = list(rows[0]["excess"])
    lines = [["blocks", "bits", "row", *names, "mean", "seconds of the processor"]]
    for row in rows:
        cells = [around(row["excess"][one]) for one in names]
        mean = sum(row["excess"][one][0] for one in names) / len(names)
        about = [row["blocks"], f"{row['bits']:g}", row["label"]]
        lines.append([*about, *cells, f"{mean:.3f}", f"{row['seconds']:.0f}"])
    return lines


if __name__ == "__main__":
    told(main)
