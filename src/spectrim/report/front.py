"""Quality against size or speed: all models that are known, and the line that none is below."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from spectrim.report.charts import FRAME, HEIGHT, WIDTH
from spectrim.report.drawing import Drawing, Scale, axes
from spectrim.report.labels import Labels
from spectrim.report.points import Point, front
from spectrim.report.words import bytes_, fixed, plain, shortened

_NAMES = {"size": "size, MB", "speed": "decoding, tokens/s (more is better)"}
_TITLES = {"size": "Loss against bytes", "speed": "Loss against tokens decoded per second"}


def quality_front(points: Sequence[Point], cost: str = "size") -> Markup | None:
    """Return the figure of losses over "size" or "speed"; None where no point has the cost."""
    shown = [point for point in points if cost == "size" or point.speed is not None]
    if not shown:
        return None
    x, y = _scales(shown, cost)
    drawing = Drawing(WIDTH, HEIGHT, _TITLES[cost], "chart")
    axes(drawing, FRAME, x, y, (_NAMES[cost], "Loss, nats/token (lower is better)"))
    corners = _steps(front(shown, cost), x, y, cost)
    drawing.path(corners, "front")
    taken = Labels(FRAME)
    taken.keep_clear_line(corners)
    for point in shown:
        taken.keep_clear(x(_at(point, cost)), y(point.loss))
    for point in shown:
        _mark(drawing, point, (x(_at(point, cost)), y))
    for point in shown:
        taken.write(drawing, (x(_at(point, cost)), y(point.loss)), shortened(point.label, 26))
    return drawing.done()


def _scales(points: Sequence[Point], cost: str) -> tuple[Scale, Scale]:
    losses = [point.loss for point in points]
    losses += [end for point in points for end in point.ends or ()]
    reach = max(max(losses) - min(losses), 0.05)
    x = Scale(0, 1.06 * max(_at(point, cost) for point in points), FRAME.left, FRAME.right)
    ends = min(losses) - 0.2 * reach, max(losses) + 0.15 * reach
    return x, Scale(*ends, FRAME.bottom, FRAME.top)


def _at(point: Point, cost: str) -> float:
    return point.size / 1e6 if cost == "size" else point.speed or 0.0


def _steps(best: Sequence[Point], x: Scale, y: Scale, cost: str) -> list[tuple[float, float]]:
    """Return the corners of the front: between two points the cheaper one is what can be had."""
    corners: list[tuple[float, float]] = []
    for point in best:
        here = x(_at(point, cost)), y(point.loss)
        if corners:
            corners.append((here[0], corners[-1][1]))
        corners.append(here)
    beyond = FRAME.right if cost == "size" else FRAME.left
    return [(corners[0][0], FRAME.top), *corners, (beyond, corners[-1][1])]


def _mark(drawing: Drawing, point: Point, place: tuple[float, Scale]) -> None:
    at, y = place
    up = y(point.loss)
    said = f"{point.label}: {bytes_(point.size)}, {fixed(point.loss)} nats/token"
    hint = said + (f", {plain(point.speed)} tokens/s" if point.speed is not None else "")
    style = f"mark {point.style}"
    if point.ends:
        drawing.line((at, y(point.ends[0]), at, y(point.ends[1])), "whisker")
    if point.style == "other":
        box = {"x": at - 4, "y": up - 4, "width": 8, "height": 8}
        drawing.add("rect", {**box, "class": style}, hint=hint)
    elif point.style == "baseline":
        corners = ((at, up - 6), (at + 6, up), (at, up + 6), (at - 6, up), (at, up - 6))
        drawing.path(corners, style, hint)
    else:
        drawing.add("circle", {"cx": at, "cy": up, "r": 5, "class": style}, hint=hint)
