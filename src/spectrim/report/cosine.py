"""How alike the hidden states of dense and smaller model stay, block by block."""

from __future__ import annotations

from math import isfinite
from typing import Any

from markupsafe import Markup

from spectrim.report.charts import FRAME, HEIGHT, WIDTH
from spectrim.report.drawing import Drawing, Scale, axes
from spectrim.report.folder import rows, value
from spectrim.report.labels import Labels
from spectrim.report.words import fixed, shortened

TASK = "Hidden states"


def blocks(scores: dict[str, Any]) -> dict[str, list[float]]:
    """Return label → mean cosine with the dense model's hidden states after each block."""
    found = {}
    for label, row in rows(scores).items():
        for score in row.get("tasks", {}).get(TASK, {}).values():
            values = (score.get("settings") or {}).get("blocks")
            if isinstance(values, list) and values and label not in found:
                found[label] = [float("nan") if one is None else float(one) for one in values]
    return found


def cosine_by_block(scores: dict[str, Any]) -> Markup | None:
    """Return the figure: a line for each model; None where no model has cosines by block."""
    found = blocks(scores)
    known = [one for line in found.values() for one in line if isfinite(one)]
    if not known:
        return None
    deepest = max(map(len, found.values()))
    low = min(*known, 0.99)
    drawing = Drawing(WIDTH, HEIGHT, "Cosine of hidden states with dense, by block", "chart")
    x = Scale(0, max(deepest - 1, 1), FRAME.left, FRAME.right)
    y = Scale(low - 0.06 * (1 - low), 1, FRAME.bottom, FRAME.top)
    axes(drawing, FRAME, x, y, ("block", "Mean cosine with dense (higher is better)"))
    taken = Labels(FRAME)
    worst = _breaking(scores)
    if worst is not None:
        drawing.line((x(worst), FRAME.top, x(worst), FRAME.bottom), "diagonal")
        taken.keep_clear_line([(x(worst), FRAME.top), (x(worst), FRAME.bottom)])
    for tone, line in enumerate(found.values(), start=1):
        places = [(x(at), y(one)) for at, one in enumerate(line) if isfinite(one)]
        drawing.path(places, f"line m{min(tone, 3)}")
        _keep_clear(taken, places)
    for tone, (label, line) in enumerate(found.items(), start=1):
        _points(drawing, label, line, (x, y), tone)
    for label, line in found.items():
        last = max((at for at, one in enumerate(line) if isfinite(one)), default=None)
        if last is not None:
            _name(drawing, shortened(label, 20), (x(last), y(line[last])), taken)
    return drawing.done()


def _breaking(scores: dict[str, Any]) -> float | None:
    """Return the block after which the smaller model's cosine has fallen most."""
    small = rows(scores).get("small", {})
    return value(small.get("tasks", {}).get(TASK), "breaking_block")


def _points(
    drawing: Drawing, label: str, line: list[float], scales: tuple[Scale, Scale], tone: int
) -> None:
    x, y = scales
    for at, one in enumerate(line):
        if isfinite(one):
            where = {"cx": x(at), "cy": y(one), "r": 2.6}
            hint = f"{label}, block {at}: {fixed(one, 4)}"
            drawing.add("circle", {**where, "class": f"dot m{min(tone, 3)}"}, hint=hint)


def _name(drawing: Drawing, text: str, at: tuple[float, float], taken: Labels) -> None:
    places = ((-4, 18, "end"), (-4, -9, "end"), (-9, 4, "end"), (-4, 32, "end"), (-4, -24, "end"))
    taken.write(drawing, at, text, places)


def _keep_clear(taken: Labels, places: list[tuple[float, float]]) -> None:
    """Let no label cover the line through these places."""
    for (left, top), (right, bottom) in zip(places, places[1:], strict=False):
        for part in range(8):
            along = part / 8
            taken.keep_clear(left + along * (right - left), top + along * (bottom - top))
