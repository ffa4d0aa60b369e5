"""How much quality each size keeps, by each way to get there: one run, one table.

    python benchmarks/front.py -o run/ [--rows dense,int4] [--windows 10] [--limit 100]

The dense model is that of benchmarks/rotated.py, on which int4 costs something. Every row of ROWS
makes a model folder of it and is measured like the others: loss on text like WikiText-2 and on text
unlike it, tasks of lm-eval, and the bytes that its file holds. All rows calibrate on the same text.
The quick way to a part of it: --rows "dense bf16,ours 20%,int3" --limit 40.
What is made and what is measured is kept by recipe, model and texts, so that an interrupted run
continues, and a changed row is measured anew; after a change of the code take a new folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from front_bench import HEALING, Row, opened, run
from front_table import results
from measuring import arguments, read_arguments
from one_line_errors import told

from spectrim.errors import SpectrimError

# parts of the bf16 bytes of the linear maps
SIZES = (0.5, 0.4, 0.25, 0.2, 0.15, 0.1, 0.07)
ENDS = {"ends": 8}  # embedding and head alike in every row
HEAL: dict[str, dict[str, Any]] = {
    "distil": {"text": HEALING, "tokens": "100x512", "steps": 50, "batch": 2, "every": 25}
}
SCALES = 16 / 64  # bits of a weight: a scale and an offset for every 64, eight bits each
FACTORS = {"format": "low_rank", "refine": "off"}
SVD_LLM = {"factorize": {"method": "whitened_svd", "allocator": "uniform", **FACTORS}}
TRAINS = {
    "factorize": {
        "method": "tensor_train", "allocator": "uniform", "refine": "off",
        "protect": ["block [0-3]$"],
    }
}  # fmt: skip
INT4 = (4 + SCALES) / 16  # of bf16


def _rounded(bits: int, rounding: str) -> dict[str, Any]:
    """Return the dense model in so many bits, and nothing else."""
    return {"keep": None, "stages": [{"quantize": {"bits": bits, "rounding": rounding, **ENDS}}]}


def _whole(*stages: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose stages say themselves how much stays."""
    return {"keep": None, "stages": list(stages)}


def _in_bytes(size: float, *stages: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe for a part of the linear maps' bytes."""
    return {"keep": f"{100 * size:g}% of linear bytes", "stages": list(stages)}


def _of_numbers(part: float, *stages: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe for a part of the linear maps' numbers."""
    return {"keep": f"{100 * part:g}% of linear", "stages": list(stages)}


EQUAL: dict[str, dict[str, Any]] = {"equalize": {}}
BITS = {
    "factorize": {
        **FACTORS, "cut": False, "bits": [2, 3, 4, 8], "trellis": True,
        "rounding_losses": "estimated",
    }
}  # fmt: skip
ROWS: tuple[Row, ...] = (
    Row("dense bf16", None, 1.0),
    Row("int8 nearest", _rounded(8, "nearest"), (8 + SCALES) / 16),
    *(
        Row(f"int{bits} {rounding}", _rounded(bits, rounding), (bits + SCALES) / 16)
        for bits in (4, 3, 2)
        for rounding in ("nearest", "gptq")
    ),
    *(  # a hundredth more than its part, as whole ranks fall short of what is asked for
        Row("SVD-LLM + GPTQ int4", _of_numbers(size / INT4 + 0.01, SVD_LLM, {"quantize": ENDS}),
            size)
        for size in SIZES
        if size < INT4
    ),
    Row(
        "five stages (Franken-LLaMA)",
        _whole({"drop_blocks": {"drop": 3}}, {"sparsify": {"pattern": "4:8"}}, HEAL,
               {"quantize": {"bits": 4, **ENDS}}, {"compensate": {"rank": 32, "metric": "inputs"}}),
        INT4,
    ),
    *(Row("CompactifAI", _of_numbers(size, TRAINS, HEAL), size) for size in (0.5, 0.4)),
    *(Row("ours", _in_bytes(size, EQUAL, BITS, {"quantize": ENDS}), size) for size in SIZES),
    *(Row("ours healed", _in_bytes(size, EQUAL, BITS, {"quantize": ENDS}, HEAL), size)
      for size in SIZES if size < INT4),
    Row("control: dense, healed alike",
        _whole({"distil": {**HEAL["distil"], "next_token": 1.0}}), 1.0),
)  # fmt: skip


def main() -> None:
    """Make and measure all rows, resuming, and write front.json and results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rotated")
    parser.add_argument(
        "--rows", default="", help="parts of labels with sizes ('dense,int4 25%%'); all"
    )
    parser.add_argument("--calibration", default="mixed", help="mixed, WikiText-2 or a file")
    parser.add_argument("--tokens", default="48x1024", help="of the calibration text")
    parser.add_argument("--windows", type=int, default=10, help="of a text at most, 2 or more")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--limit", type=int, default=100, help="items of a task; 0 for all")
    asked = read_arguments(parser)
    bench = opened(asked)
    cannot: dict[str, str] = {}
    parts = asked.rows.split(",")
    for row in (row for row in ROWS if any(part in row.title for part in parts)):
        try:
            run(bench, row)
        except SpectrimError as error:  # the other rows can do without
            cannot[row.title] = str(error)
            print(f"{row.title}: {error}", flush=True)
    print(results(bench, ROWS, cannot))


if __name__ == "__main__":
    told(main)
