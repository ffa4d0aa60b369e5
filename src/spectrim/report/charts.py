"""The loss that the plan's currency predicts against the one that was measured."""

from __future__ import annotations

from math import isfinite
from typing import Any

from markupsafe import Markup

from spectrim.report.drawing import Drawing, Frame, Scale, axes
from spectrim.report.labels import OFF_DIAGONAL, Labels
from spectrim.report.words import GAP, fixed

WIDTH, HEIGHT = 400, 280
FRAME = Frame(left=46, right=386, top=28, bottom=236)
_PREDICTION = ("predicted", "measured", "budgets")


def predicted_against_measured(prediction: dict[str, Any] | None) -> Markup | None:
    """Return measured increase of the loss over the predicted one, at every budget tried."""
    known = prediction or {}
    pairs = [
        (float(x), float(y), budget)
        for x, y, budget in zip(*(known.get(key, []) for key in _PREDICTION), strict=False)
        if x is not None and y is not None and isfinite(x) and isfinite(y)
    ]
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


def _budget(budget: Any) -> str:
    number = isinstance(budget, (int, float))
    return f"{100 * budget:.0f}{GAP}%" if number and 0 < budget <= 1 else str(budget)
