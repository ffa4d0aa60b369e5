"""Singular values of every site, a panel for each role, with the rank that was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from markupsafe import Markup

from spectrim.model.architectures import role_group
from spectrim.report.drawing import Drawing, Frame, Scale, axes
from spectrim.report.words import fixed

DEPTHS = 6
_WIDTH, _HEIGHT = 258, 190
_FRAME = Frame(left=40, right=248, top=26, bottom=148)
_DECADES = 1e4  # below this part of the greatest value nothing is told apart by eye


@dataclass(frozen=True)
class Line:
    """One site's spectrum: ranks and singular values, and the rank chosen; None where none was."""

    site: str
    block: int
    role: str
    ranks: tuple[float, ...]
    values: tuple[float, ...]
    chosen: int | None


def panels(decisions: list[dict[str, Any]], curves: dict[str, Any]) -> list[Markup]:
    """Return a figure for each role; all share the vertical axis, so that roles compare."""
    found = [line for line in (_line(one, curves) for one in decisions) if line is not None]
    if not found:
        return []
    highest = max(max(line.values) for line in found)
    lowest = min(value for line in found for value in line.values if value > 0)
    scale = Scale(max(lowest, highest / _DECADES), highest, _FRAME.bottom, _FRAME.top, log=True)
    depth = 1 + max(line.block for line in found)
    roles = dict.fromkeys(line.role for line in found)
    return [
        _panel(role, [one for one in found if one.role == role], scale, depth) for role in roles
    ]


def _line(decision: dict[str, Any], curves: dict[str, Any]) -> Line | None:
    curve = curves.get(decision["site"]) or {}
    ranks, values = curve.get("ranks") or [], curve.get("singular_values") or []
    known = [
        (float(rank), float(value))
        for rank, value in zip(ranks, values, strict=False)
        if rank is not None and value is not None and isfinite(value) and value >= 0
    ]
    if len(known) < 2 or max(value for _, value in known) <= 0:
        return None
    rank = None if decision["format"] == "dense" else decision.get("rank")
    return Line(
        decision["site"],
        int(decision["block"]),
        role_group(decision["role"]),
        tuple(rank for rank, _ in known),
        tuple(value for _, value in known),
        None if rank is None else int(rank),
    )


def _panel(role: str, lines: list[Line], y: Scale, depth: int) -> Markup:
    drawing = Drawing(_WIDTH, _HEIGHT, f"Singular values of {role}, a line for each block", "chart")
    x = Scale(0, max(line.ranks[-1] for line in lines), _FRAME.left, _FRAME.right)
    axes(drawing, _FRAME, x, y, ("rank", "σ"))
    drawing.text(_FRAME.left, 14, role, "panel", "start")
    for line in lines:
        shown = [pair for pair in zip(line.ranks, line.values, strict=True) if pair[1] >= y.low]
        drawing.path(
            ((x(rank), y(value)) for rank, value in shown), f"spectrum {_tone(line, depth)}"
        )
    for line in lines:
        _chosen(drawing, line, x, y, depth)
    return drawing.done()


def _chosen(drawing: Drawing, line: Line, x: Scale, y: Scale, depth: int) -> None:
    if line.chosen is None:
        return
    value = _between(line, line.chosen)
    hint = f"{line.site}: rank {line.chosen}, singular value {fixed(value, 4)}"
    where = {"cx": x(line.chosen), "cy": y(value), "r": 2.6}
    drawing.add("circle", {**where, "class": f"chosen {_tone(line, depth)}"}, hint=hint)


def _between(line: Line, rank: float) -> float:
    """Return the value at a rank that may lie between two stored points."""
    pairs = list(zip(line.ranks, line.values, strict=True))
    for (low, before), (high, after) in zip(pairs, pairs[1:], strict=False):
        if low <= rank <= high and high > low:
            return before + (after - before) * (rank - low) / (high - low)
    return pairs[0][1] if rank < pairs[0][0] else pairs[-1][1]


def _tone(line: Line, depth: int) -> str:
    return f"d{min(DEPTHS - 1, max(0, line.block) * DEPTHS // max(depth, 1))}"
