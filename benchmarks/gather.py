"""Makes a run file of what the example and `spectrim profile` wrote, into benchmarks/runs/.

    python benchmarks/gather.py ranks run/                     # of examples/bart_summariser.py
    python benchmarks/gather.py profile by_role/ by_block/     # of two `spectrim profile ... -o`

Benchmarks write such files themselves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import run_files
from measuring import commit_here, machine
from one_line_errors import told

from spectrim.errors import SpectrimError

Row = dict[str, Any]


def main() -> None:
    """Write benchmarks/runs/ranks.json or benchmarks/runs/profile.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=("ranks", "profile"))
    parser.add_argument("folders", type=Path, nargs="+")
    asked = parser.parse_args()
    name = "results.json" if asked.run == "ranks" else "profile.json"
    found = [_read(folder / name) for folder in asked.folders]
    run = ranks(found[0]) if asked.run == "ranks" else profile(found)
    run_files.write(run, run_files.RUNS / f"{asked.run}.json")


def ranks(found: Row) -> run_files.Run:
    """Return the run of the summariser; found: its results.json."""
    dense, *_ = found["rows"]
    training, splits = found["about"]["training"], found["about"]["splits"]
    return {
        "command": "python examples/bart_summariser.py -o run/",
        "commit": commit_here(),
        "seed": training["seed"],
        "machine": machine() | {"threads": None},  # the example's own, which it tells in words
        "machine_in_words": found["about"]["machine"],
        "model": f"a BART of {training['numbers'] / 1e6:.2f} M numbers, trained from scratch",
        "text": f"dialogues: {', '.join(f'{count} for {name}' for name, count in splits.items())}",
        "rows": [_rank(row, dense) for row in found["rows"]],
    }


def _rank(row: Row, dense: Row) -> Row:
    apart = [row["rougeL_difference"], *row["rougeL_interval"]] if row is not dense else []
    sizes = {
        name: [row[name] / 1e6, row[name] / dense[name]] for name in ("multiply_adds", "bytes")
    }
    about = {key: row[key] for key in ("rank", "method", "format", "loss", "runtime")}
    rouge = [100 * row[name] for name in ("rouge1", "rouge2", "rougeL")]
    difference = [100 * value for value in apart] or None
    return {"table": "ranks", **about, **sizes, "rouge": rouge, "difference": difference}


def profile(found: list[Row]) -> run_files.Run:
    """Return the run of two profiles, one by role and one by block; found: their profile.json."""
    first = found[0]
    sizes = ",".join(f"{size:.0%}" for size in first["sizes"])
    length = f"{first['sequences']} x {first['length']}"
    return {
        "command": f"spectrim profile {first['model']} --by role, and --by block, --sizes {sizes}",
        "commit": commit_here(),
        "seed": first["seed"],
        "machine": machine() | {"threads": first["threads"], **_versions(first["versions"])},
        "model": first["model"],
        "text": f"calibrated on {first['calibration']} tokens of {first['text']}; "
        f"measured on {length} tokens of its search split",
        "error": "± one standard error",
        "rows": [
            {"table": f"{one['by']}s", "keep": size, "increase": _increase(one, size)}
            for one in found
            for size in one["sizes"]
        ],
    }


def _versions(versions: Row) -> Row:
    return {name: versions[name] for name in ("torch", "transformers")}


def _increase(found: Row, size: float) -> Row:
    """Return what each role costs, or the first block, three stretches between, and the last."""
    rows = [row for row in found["rows"] if row["size"] == size and row["cut"] == "alone"]
    if found["by"] == "role":
        return {row["role"]: [row["measured"], row["error"]] for row in rows}
    rows = sorted(rows, key=lambda row: int(row["block"]))
    first, *middle, last = (row["measured"] for row in rows)
    third = max(1, -(-len(middle) // 3))
    increase = {"block 0": [first]}
    for begin in range(0, len(middle), third):
        part = middle[begin : begin + third]
        name = f"{begin + 1} to {begin + len(part)}" if len(part) > 1 else f"{begin + 1}"
        increase[name] = [median(part), min(part), max(part)]
    return increase | {str(len(middle) + 1): [last]}


def _read(file: Path) -> Row:
    if not file.is_file():
        raise SpectrimError(f"no {file}; give the output folder of a finished run")
    found: Row = json.loads(file.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    told(main)
