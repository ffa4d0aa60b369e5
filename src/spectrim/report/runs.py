"""Several output folders in one table: a column for the dense model and one for each folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectrim.report.folder import Output, rows
from spectrim.report.points import comparable, names


def merged(output: Output, others: Sequence[Output]) -> dict[str, Any]:
    """Return scores whose rows are the dense model and the smaller ones, named by their folders.

    What was measured on other text, or against another dense model, is left out of a row.
    """
    own = rows(output.scores)
    first = {"dense": own["dense"]} if "dense" in own else {}
    folders = [output, *others]
    made = list(first.values())
    for folder, name in zip(folders, names(folders, list(first)), strict=True):
        row = rows(folder.scores).get("small")
        if row is not None:
            made.append(_column(row, name, comparable(output, folder)))
    return {"settings": output.scores.get("settings", {}), "rows": made}


def _column(row: dict[str, Any], name: str, compares: bool) -> dict[str, Any]:
    if compares:
        return row | {"label": name}
    kept = {key: score for key, score in row.items() if not _on_text(score)}
    return kept | {"label": name, "texts": {}, "tasks": {}}


def _on_text(score: Any) -> bool:
    return isinstance(score, dict) and "text" in (score.get("settings") or {})
