"""The quick suite on the demo model at two sizes: every measure, dense beside small, and its time.

    python benchmarks/suite.py -o run/ [--keeps 80,60]

Shrinks by the default text, measures with the command line as a user would, and writes suite.md,
the tables of docs/results.md, and report.html, one page on all sizes. The second size finds the
dense model's answers in the cache. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from spectrim.report import table, tasks, words
from spectrim.report.folder import Output, interval, read, rows, value
from spectrim.report.page import write_page
from spectrim.report.runs import merged

TEXTS = ("lm/wikitext2_tokens/valid.txt", "lm/exllamav2_cal/c4.utf8")
TOKENS = "8x1024"  # of each text


def main() -> None:
    """Shrink and measure every size, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SPECTRIM_DATA", "../shared/data"))
    )
    parser.add_argument("--keeps", default="80,60")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    if not asked.data.is_dir():
        raise SystemExit(f"no data in {asked.data}; set SPECTRIM_DATA to their folder")
    cache = ["--cache", str(asked.cache or asked.output / "cache")]
    folders = [asked.output / f"{keep}" for keep in asked.keeps.split(",")]
    for folder in folders:
        if not (folder / "plan.json").exists():
            kept = f"{folder.name}% of linear"
            _spectrim("shrink", "demo", "--keep", kept, "-o", folder, "--no-evaluate", *cache)
        if not (folder / "minutes.json").exists():
            _measure(folder, asked.data, cache)
    found = [read(folder) for folder in folders]
    write_page(folders[0], asked.output / "report.html", folders[1:])
    (asked.output / "suite.md").write_text(_tables(found, folders), encoding="utf-8")
    print((asked.output / "suite.md").read_text(encoding="utf-8"))


def _measure(folder: Path, data: Path, cache: list[str]) -> None:
    began = time.perf_counter()
    texts = [part for text in (*TEXTS, "default") for part in ("--text", _path(data, text))]
    asked = ["--suite", "quick", "--data", data, "--tokens", TOKENS, *texts]
    _spectrim("evaluate", folder, *asked, "--json", folder / "scores.json", *cache)
    taken = (time.perf_counter() - began) / 60
    (folder / "minutes.json").write_text(json.dumps(taken), encoding="utf-8")


def _path(data: Path, text: str) -> object:
    return text if text == "default" else data / text


def _spectrim(*arguments: object) -> None:
    command = "from spectrim.cli import main; main()"
    subprocess.run([sys.executable, "-c", command, *map(str, arguments)], check=True)


def _tables(found: list[Output], folders: list[Path]) -> str:
    together = merged(found[0], found[1:])
    labels = ["dense", *(f"{folder.name} %" for folder in folders)]
    minutes = [
        json.loads((folder / "minutes.json").read_text(encoding="utf-8")) for folder in folders
    ]
    return "\n\n".join(
        [
            "Minutes of the suite: " + ", ".join(f"{taken:.1f}" for taken in minutes) + ".",
            _markdown(["measure", "", *labels], _lines(together)),
            _markdown(["text, excess loss over dense, nats/token", *_rows(found[0])[1:],
                       labels[-1]], _texts(found)),
            _markdown(["task", "measure", "", "n", *labels], _tasks(together)),
            "\n".join(f"- {said}" for said in tasks.unmeasured(found[0].scores)),
        ]
    )  # fmt: skip


def _lines(together: dict[str, Any]) -> list[list[str]]:
    return [[line.name.strip(), line.arrow, *line.cells] for line in table.lines(together)]


def _rows(output: Output) -> list[str]:
    return list(rows(output.scores))


def _texts(found: list[Output]) -> list[list[str]]:
    """Return the excess of every model on every text: the first size, baselines, the others."""
    first = rows(found[0].scores)
    lines = []
    for text in first["dense"]["texts"]:
        own = [first[label]["texts"].get(text) for label in list(first)[1:]]
        own += [rows(other.scores)["small"]["texts"].get(text) for other in found[1:]]
        lines.append([text, *map(_excess, own)])
    return lines


def _excess(row: dict[str, Any] | None) -> str:
    ends = interval(row, "excess_loss")
    half = f" ± {words.fixed((ends[1] - ends[0]) / 2)}" if ends else ""
    return words.fixed(value(row, "excess_loss"), sign=True) + half


def _tasks(together: dict[str, Any]) -> list[list[str]]:
    return [
        [line.task, line.name, line.arrow, line.count, *line.cells]
        for line in tasks.lines(together)
    ]


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.strip() for cell in line) + " |" for line in every)


if __name__ == "__main__":
    main()
