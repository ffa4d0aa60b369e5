"""The three tables of benchmarks/suite.py, written as spectrim's own report writes scores.

What a model has of a measure is None, a number, a word in its place, [value, half of its interval],
a score with ``value`` and ``interval``, or what was ``lost`` and ``gained`` with McNemar's ``p``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spectrim.report import tasks as report_tasks
from spectrim.report import words

Row = dict[str, Any]
Lines = list[list[str]]

_SHOWN: dict[str, Callable[[float], str]] = {
    "nats/token": words.fixed,
    "share": words.share,
    "numbers": words.count,
    "per token": words.count,
    "bytes": words.bytes_,
}


def measures(rows: list[Row]) -> Lines:
    """Return a line for every measure of the headline text, of size and of cost."""
    lines = [["measure", "", *rows[0]["models"]]]
    for row in rows:
        cells = [_cell(one, row["unit"]) for one in row["models"].values()]
        lines.append([row["measure"], words.ARROWS[row["better"]], *cells])
    return lines


def texts(rows: list[Row]) -> Lines:
    """Return a line for every text: each model's excess loss over the dense one."""
    lines = [["text, excess loss over dense, nats/token", *rows[0]["excess"]]]
    lines += [[row["text"], *map(_excess, row["excess"].values())] for row in rows]
    return lines


def tasks(rows: list[Row]) -> Lines:
    """Return a line for every measure of every task."""
    lines = [["task", "measure", "", "n", *rows[0]["models"]]]
    for row in rows:
        count = "" if row["n"] is None else f"{row['n']:,}"
        cells = [_score(one, row["unit"]) for one in row["models"].values()]
        lines.append([row["task"], row["measure"], words.ARROWS[row["better"]], count, *cells])
    return lines


def _cell(one: Any, unit: str) -> str:
    if one is None or isinstance(one, str):
        return one or ""
    if isinstance(one, dict):
        return _flips(one)
    return _excess(one) if isinstance(one, list) else _SHOWN.get(unit, words.plain)(one)


def _excess(pair: list[float] | None) -> str:
    return f"{words.fixed(pair[0], sign=True)} ± {words.fixed(pair[1])}" if pair else ""


def _flips(one: Row) -> str:
    """Return shares and p; of a p that is only known to be small, ``below`` is its bound."""
    p = f"p{words.GAP}<{words.GAP}{one['below']}" if "below" in one else words.probability(one["p"])
    return f"{words.share(one['lost'])}, {words.share(one['gained'])}; {p}"


def _score(one: Any, unit: str) -> str:
    if isinstance(one, dict) and "lost" not in one:
        return report_tasks.shown({**one, "unit": unit})
    return _cell(one, unit)
