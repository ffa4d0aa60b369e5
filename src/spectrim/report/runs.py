"""Several output folders in one table: a column for the dense model and one for each folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectrim.report.folder import Output, rows
from spectrim.report.points import comparable, names


def merged(output: Output, others: Sequence[Output]) -> dict[str, Any]:
    """Return scores whose rows are the dense model and the smaller ones, named by their folders.

    What was measured on other text, or against another dense model, is left out of a row. A task of
    which the folders asked different numbers of items is one task for each number.
    """
    first = {label: row for label, row in rows(output.scores).items() if label == "dense"}
    folders = [output, *others]
    apart = asked_otherwise(folders)
    made = [row | {"tasks": _dense_tasks(_comparable(folders), apart)} for row in first.values()]
    for folder, name in zip(folders, names(folders, list(first)), strict=True):
        row = rows(folder.scores).get("small")
        if row is not None:
            told = _tasks(folder, "small", apart) if comparable(output, folder) else None
            made.append(_column(row, name, told))
    return {"settings": output.scores.get("settings", {}), "rows": made}


def asked_otherwise(folders: Sequence[Output]) -> set[str]:
    """Return the tasks of which not all folders that compare with the first asked as many items."""
    counts: dict[str, set[int]] = {}
    for folder in _comparable(folders):
        for task, count in _items(folder).items():
            counts.setdefault(task, set()).add(count)
    return {task for task, found in counts.items() if len(found) > 1}


def _comparable(folders: Sequence[Output]) -> list[Output]:
    return [folder for folder in folders if comparable(folders[0], folder)]


def _items(folder: Output) -> dict[str, int]:
    """Return how many items of each task a folder's models were asked."""
    found: dict[str, int] = {}
    for row in rows(folder.scores).values():
        for task, own in row.get("tasks", {}).items():
            asked = [int(score.get("n") or 0) for score in own.values()]
            found[task] = max(found.get(task, 0), *asked, 0)
    return found


def _tasks(folder: Output, label: str, apart: set[str]) -> dict[str, Any]:
    """Return a model's tasks; those set ``apart`` go by their number of items too."""
    counts, row = _items(folder), rows(folder.scores).get(label, {})
    return {_named(task, counts[task], apart): own for task, own in row.get("tasks", {}).items()}


def _named(task: str, count: int, apart: set[str]) -> str:
    return f"{task}, n = {count:,}" if task in apart else task


def _dense_tasks(folders: list[Output], apart: set[str]) -> dict[str, Any]:
    """Return what the dense model made of every task at each number of items, in order of tasks."""
    found: dict[str, Any] = {}
    for task in dict.fromkeys(task for folder in folders for task in _items(folder)):
        for folder in folders:
            own = rows(folder.scores).get("dense", {}).get("tasks", {}).get(task)
            if own:
                found.setdefault(_named(task, _items(folder)[task], apart), own)
    return found


def _column(row: dict[str, Any], name: str, told: dict[str, Any] | None) -> dict[str, Any]:
    """Return a column of the table; without tasks that compare, what was read is left out too."""
    if told is not None:
        return row | {"label": name, "tasks": told}
    kept = {key: score for key, score in row.items() if not _on_text(score)}
    return kept | {"label": name, "texts": {}, "tasks": {}}


def _on_text(score: Any) -> bool:
    return isinstance(score, dict) and "text" in (score.get("settings") or {})
