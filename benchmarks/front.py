"""How much quality each size keeps, by each way to get there: one run, one table.

    python benchmarks/front.py -o run/ [--rows dense,int4] [--windows 16] [--limit 200]

The dense model is that of benchmarks/rotated.py, on which int4 costs something. Every row of ROWS
makes a model folder of it and is measured like the others: loss on text like WikiText-2 and on text
unlike it, tasks of lm-eval, and the bytes that its file holds. All rows calibrate on the same text.
What is made and what is measured is kept by all that decides it, so that an interrupted run
continues, and a changed row is measured anew.
"""

from __future__ import annotations

from pathlib import Path

from front_bench import Row, opened, run
from front_table import results
from measuring import arguments, read_arguments

from spectrim.errors import SpectrimError

ROWS: tuple[Row, ...] = (
    Row("dense bf16", None, 1.0),
    Row("factorize alone", {"stages": [{"factorize": {}}]}, 0.8),
)


def main() -> None:
    """Make and measure all rows, resuming, and write results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rotated")
    parser.add_argument(
        "--rows", default="", help="parts of labels with sizes ('dense,int4 25%%'); all"
    )
    parser.add_argument("--calibration", default="default", help="WikiText-2, default, or a file")
    parser.add_argument("--tokens", default="48x1024", help="of the calibration text")
    parser.add_argument("--windows", type=int, default=16, help="of a text at most, 2 or more")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--limit", type=int, default=200, help="items of a task; 0 for all")
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
    (asked.output / "results.md").write_text(results(bench, ROWS, cannot), encoding="utf-8")
    print((asked.output / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except SpectrimError as error:
        raise SystemExit(str(error)) from error
