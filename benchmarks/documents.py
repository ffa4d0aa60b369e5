"""Fills the tables of README.md and docs/*.md, so that none of them is written by hand.

    python benchmarks/documents.py            # fill
    python benchmarks/documents.py --check    # say which document is not as it would be filled

A table stands between two comments of a document:

    <!-- table: NAME -->
    <!-- end -->

NAME is a table of measured numbers (tables.py), `tasks` (what `spectrim list tasks` knows, with the
data sets that the metrics name), `families` (the table of architectures), `tree` or `levels` (the
structure of the package).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import run_files
import structure
from one_line_errors import told
from tables import TABLES, Lines, markdown, measured

from spectrim.cli.console import entries
from spectrim.errors import SpectrimError, did_you_mean
from spectrim.metrics import metrics
from spectrim.metrics.asking.examples import DataSet

ROOT = PACKAGE = Path(__file__).parent.parent  # of the documents; of the code that they tell of
STRUCTURE = {"tree": structure.tree, "levels": structure.levels}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def main() -> None:
    """Fill every document, or end with the names of those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args()
    old = {file: file.read_text(encoding="utf-8") for file in documents(ROOT)}
    changed = {file: text for file, text in old.items() if filled(text) != text}
    if asked.check and changed:
        told = ", ".join(str(file.relative_to(ROOT)) for file in changed)
        sys.exit(f"not as the runs and the code have it: {told}; give 'make docs'")
    for file, text in changed.items():
        file.write_text(filled(text), encoding="utf-8")


def documents(root: Path) -> list[Path]:
    """Return the documents that may have tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """Return a document with every marked table made anew.

    Raises:
        SpectrimError: a marker names no table, or has no end.
    """
    if text.count("<!-- table: ") != len(MARKED.findall(text)):
        raise SpectrimError("a marked table has no end; write <!-- end --> behind it")
    return MARKED.sub(lambda found: f"{found[1]}{content(found[2])}\n{found[3]}", text)


def content(name: str) -> str:
    """Return what stands between the markers of that name.

    Raises:
        SpectrimError: there is no such table.
    """
    if name == "tasks":
        return markdown(tasks())
    if name == "families":
        return ", ".join(f"`{family}`" for family, _ in entries("families"))
    if name in STRUCTURE:
        return STRUCTURE[name](PACKAGE)
    if name not in TABLES:
        hint = did_you_mean(name, [*TABLES, "tasks", "families", *STRUCTURE])
        raise SpectrimError(f"no table named '{name}'{hint}")
    return measured(name, run_files.read(TABLES[name].run))


def tasks() -> Lines:
    """Return a line for every task: its metrics in words, its file, its name on the hub."""
    lines = [["task", "what is measured", "file in the folder of data", "hub, without the file"]]
    for task, said in entries("tasks"):
        told, _, metric = said.removesuffix("]").rpartition(" [")
        name = f"`{task}`" if task else ""
        data = data_set(metric, task or lines[-1][0].strip("`"))
        lines.append([name, told, *(where(data) if task else ("", ""))])
    return [
        *lines,
        ["any other name", "what lm-evaluation-harness makes of it", "", "lm-eval's own"],
    ]


def data_set(metric: str, task: str) -> DataSet | None:
    """Return the data set that a metric asks for a task; None where it needs none."""
    module = sys.modules[metrics.get(metric).__module__]
    data = getattr(module, "DATA", None)
    return data.get(task) if isinstance(data, dict) else data


def where(data: DataSet | None) -> tuple[str, str]:
    """Return the file of a data set and its repository."""
    if data is None:
        return "", ""
    return data.file, data.hub.partition(":")[0] or "lm-eval's own"


if __name__ == "__main__":
    told(main)
