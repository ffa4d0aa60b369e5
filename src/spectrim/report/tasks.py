"""The tasks as lines of a table, and in sentences what could not be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.report import words
from spectrim.report.folder import interval, rows, value
from spectrim.report.table import flips

FLIPS = ("lost", "gained", "mcnemar_p")
LOPSIDED = 0.15  # of an interval's width; ± would say something else then


@dataclass(frozen=True)
class TaskLine:
    """One measure of one task: a cell for each of ``columns``, the change, how many items."""

    task: str
    name: str
    arrow: str
    cells: tuple[str, ...]
    change: str
    count: str


def columns(scores: dict[str, Any]) -> list[str]:
    """Return the labels of the rows that have tasks: baselines often have none."""
    return [label for label, row in rows(scores).items() if row.get("tasks")]


def lines(scores: dict[str, Any]) -> list[TaskLine]:
    """Return a line for every measure of every task, flips of a task as its last."""
    labels = columns(scores)
    table = [rows(scores)[label]["tasks"] for label in labels]
    found = []
    for task in dict.fromkeys(task for row in table for task in row):
        own = [row.get(task, {}) for row in table]
        found += [_line(task, name, own) for name in measures(own)]
        if any("lost" in row for row in own):
            cells = tuple(flips(row) for row in own)
            found.append(TaskLine(task, "lost, gained; McNemar", "", cells, "", ""))
    return found


def measures(own: list[dict[str, Any]]) -> list[str]:
    """Return the names of a task's measures in order, those of its flips left out."""
    return [name for name in dict.fromkeys(name for row in own for name in row) if _told(own, name)]


def unmeasured(scores: dict[str, Any]) -> list[str]:
    """Return a sentence for every measure that could not be taken, and for what was left out."""
    said: dict[tuple[str, str], list[str]] = {}
    for label, row in rows(scores).items():
        for name, score in _all(row):
            why = (score.get("settings") or {}).get("not_measured")
            if why:
                said.setdefault((name, str(why)), []).append(label)
    found = [
        words.sentence(f"{name} of {' and '.join(labels)} was not measured: {why}")
        for (name, why), labels in said.items()
    ]
    left_out = scores.get("left_out") or {}
    return found + [
        words.sentence(f"{name.replace('_', ' ')} was left out: {why}")
        for name, why in left_out.items()
    ]


def shown(score: dict[str, Any] | None) -> str:
    """Return one score with its interval, the ends of a share; nothing where there is none."""
    if not isinstance(score, dict):
        return ""
    if (score.get("settings") or {}).get("not_measured"):
        return words.NOT_MEASURED
    row, unit = {"it": score}, score.get("unit")
    number, ends = value(row, "it"), interval(row, "it")
    if number is None:
        return words.MISSING
    if unit == "share":
        return f"{100 * number:.1f}{_around(number, ends)}{words.GAP}%"
    if unit == "block":
        return f"{number:.0f}"
    if unit == "probability":
        return words.probability(number)
    digits = _digits(number)
    return words.fixed(number, digits) + words.half(ends, lambda half: words.fixed(half, digits))


def _around(number: float, ends: tuple[float, float] | None) -> str:
    """Return half an interval after its sign, or both its ends where it is lopsided."""
    if ends and abs(ends[0] + ends[1] - 2 * number) > LOPSIDED * (ends[1] - ends[0]):
        return f" ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})"
    return words.half(ends, lambda half: f"{100 * half:.1f}")


def named(name: str, score: dict[str, Any]) -> str:
    """Return a measure's name in words, with its unit where the numbers do not show it."""
    said, unit = words.measure(name), str(score.get("unit") or "")
    return said if unit in ("share", "probability") or unit in said else f"{said}, {unit}"


def _told(own: list[dict[str, Any]], name: str) -> bool:
    return name not in FLIPS or not any("lost" in row for row in own)


def _line(task: str, name: str, own: list[dict[str, Any]]) -> TaskLine:
    first = next(row[name] for row in own if name in row)
    counts = dict.fromkeys(int(row[name].get("n") or 0) for row in own if name in row)
    return TaskLine(
        task,
        named(name, first),
        words.ARROWS.get(str(first.get("better")), ""),
        tuple(shown(row.get(name)) for row in own),
        _change(own, name, str(first.get("unit"))),
        " / ".join(f"{count:,}" for count in counts),
    )


def _change(own: list[dict[str, Any]], name: str, unit: str) -> str:
    if len(own) < 2:
        return ""
    before, after = value(own[0], name), value(own[1], name)
    if before is None or after is None:
        return ""
    if unit in ("block", "probability"):
        return ""
    if unit == "share":
        return words.change(after - before, unit)
    return words.fixed(after - before, _digits(before), sign=True)


def _digits(number: float) -> int:
    return 3 if abs(number) < 10 else 1


def _all(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return all scores of a row with their names in words, the tasks' ones with their task."""
    found = [(name, score) for name, score in row.items() if isinstance(score, dict)]
    found = [(words.measure(name), score) for name, score in found if "value" in score]
    for task, scores in row.get("tasks", {}).items():
        found += [(f"{task}: {words.measure(name)}", score) for name, score in scores.items()]
    return found
