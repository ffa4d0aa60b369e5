"""The loss that the plan's currency predicts against the one that was measured."""

from __future__ import annotations

from math import isfinite
from statistics import geometric_mean
from typing import Any

from markupsafe import Markup

from spectrim.report.drawing import Drawing, Frame, Scale, axes
from spectrim.report.labels import OFF_DIAGONAL, Labels
from spectrim.report.words import GAP, fixed, plain

WIDTH, HEIGHT = 400, 280
FRAME = Frame(left=46, right=386, top=28, bottom=236)
_PREDICTION = ("predicted", "measured", "budgets")


def predicted_against_measured(prediction: dict[str, Any] | None) -> Markup | None:
    """Return measured increase of the loss over the predicted one, at every budget tried."""
    pairs = _pairs(prediction)
    if not pairs:
        return None
    log = min(min(x, y) for x, y, _ in pairs) > 0
    low, high = (f(f(x, y) for x, y, _ in pairs) for f in (min, max))
    low, high = (low / 1.35, high * 1.35) if log else (min(0.0, low), high * 1.08)
    drawing = Drawing(WIDTH, HEIGHT, "Predicted against measured increase of the loss", "chart")
    x = Scale(low, high, FRAME.left, FRAME.right, log)
    y = Scale(low, high, FRAME.bottom, FRAME.top, log)
    axes(drawing, FRAME, x, y, ("predicted increase, nats/token", "Measured increase, nats/token"))
    drawing.line((x(low), y(low), x(high), y(high)), "diagonal")
    taken = Labels(FRAME)
    for predicted, measured, _ in pairs:
        taken.keep_clear(x(predicted), y(measured))
    for predicted, measured, budget in pairs:
        hint = f"{_budget(budget)}: predicted {fixed(predicted)}, measured {fixed(measured)}"
        where = {"cx": x(predicted), "cy": y(measured), "r": 4.5}
        drawing.add("circle", {**where, "class": "mark small"}, hint=hint)
        taken.write(drawing, (x(predicted), y(measured)), _budget(budget), OFF_DIAGONAL)
    return drawing.done()


def how_far_off(prediction: dict[str, Any] | None) -> str:
    """Return a sentence on measured over predicted increase: geometric mean, smallest, largest.

    Budgets where one of the two is not above zero have no such ratio and are left out, and counted;
    nothing is said where that leaves none.
    """
    ratios = [y / x for x, y, _ in _pairs(prediction) if x > 0 and y > 0]
    left = len((prediction or {}).get("budgets", [])) - len(ratios)
    if not ratios:
        return ""
    average, *ends = map(plain, (geometric_mean(ratios), min(ratios), max(ratios)), (2, 2, 2))
    among = f", {ends[0]} to {ends[1]} times" if len(ratios) > 1 else ""
    where = f"{len(ratios)} budgets" if len(ratios) > 1 else "one budget"
    where += f", {left} without increase left out" if left else ""
    return f"Measured is on average {average} times predicted (geometric mean of {where}{among})."


def _pairs(prediction: dict[str, Any] | None) -> list[tuple[float, float, Any]]:
    """Return predicted and measured increase and budget, wherever both are numbers."""
    known = prediction or {}
    return [
        (float(x), float(y), budget)
        for x, y, budget in zip(*(known.get(key, []) for key in _PREDICTION), strict=False)
        if x is not None and y is not None and isfinite(x) and isfinite(y)
    ]


def _budget(budget: Any) -> str:
    number = isinstance(budget, (int, float))
    return f"{100 * budget:.0f}{GAP}%" if number and 0 < budget <= 1 else str(budget)
