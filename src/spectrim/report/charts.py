"""Two figures of points: quality against size, and predicted against measured loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from markupsafe import Markup

from spectrim.report.drawing import LETTER, Drawing, Frame, Scale, axes
from spectrim.report.folder import Output, interval, rows, value
from spectrim.report.words import GAP, bytes_, fixed, shortened

WIDTH, HEIGHT = 400, 280
FRAME = Frame(left=46, right=386, top=28, bottom=236)
_SAME = ("text", "window", "stride", "tokens")  # what must agree for two losses to compare


@dataclass(frozen=True)
class Point:
    """One model in the plane: megabytes and loss; ``style`` is "dense", "small" or "other".

    ``ends`` is the 95 % interval of the loss, given that of the dense model.
    """

    label: str
    style: str
    size: float
    loss: float
    ends: tuple[float, float] | None = None


def quality_against_size(output: Output, others: list[Output]) -> tuple[Markup, list[str]] | None:
    """Return the figure, and the names of folders left out because their losses do not compare.

    None where the folder itself has neither bytes nor loss.
    """
    points = _points(output.scores, "")
    if not points:
        return None
    left_out = []
    for other in others:
        more = _points(other.scores, other.name)
        if not more or not _comparable(output.scores, other.scores):
            left_out.append(other.name)
        else:  # its dense model is the same point
            points += [point for point in more if point.style != "dense"]
    return _scatter(points), left_out


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
    taken = _Labels(FRAME)
    for predicted, measured, _ in pairs:
        taken.keep_clear(x(predicted), y(measured))
    for predicted, measured, budget in pairs:
        hint = f"{_budget(budget)}: predicted {fixed(predicted)}, measured {fixed(measured)}"
        where = {"cx": x(predicted), "cy": y(measured), "r": 4.5}
        drawing.add("circle", {**where, "class": "mark small"}, hint=hint)
        taken.write(drawing, (x(predicted), y(measured)), _budget(budget), _OFF_DIAGONAL)
    return drawing.done()


_PREDICTION = ("predicted", "measured", "budgets")


def _points(scores: dict[str, Any], folder: str) -> list[Point]:
    found = []
    for label, row in rows(scores).items():
        size, loss = (
            value(row, "bytes_on_disk") or value(row, "bytes_in_memory"),
            value(row, "loss"),
        )
        if size and loss is not None:
            style = label if label in ("dense", "small") and not folder else "other"
            style = "dense" if label == "dense" else style
            name = folder if folder and label == "small" else f"{folder} {label}".strip()
            over, ends = value(row, "excess_loss"), interval(row, "excess_loss")
            # Of the difference from dense: both read the same text, so it is what is uncertain.
            reach = ends and over is not None and (loss - over + ends[0], loss - over + ends[1])
            found.append(Point(name, style, size / 1e6, loss, reach or None))
    return found


def _comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    settings = one.get("settings", {}), other.get("settings", {})
    return all(settings[0].get(key) == settings[1].get(key) for key in _SAME)


def _scatter(points: list[Point]) -> Markup:
    losses = [point.loss for point in points]
    losses += [end for point in points for end in point.ends or ()]
    reach = max(max(losses) - min(losses), 0.05)
    drawing = Drawing(WIDTH, HEIGHT, "Loss against bytes on disk", "chart")
    x = Scale(0, 1.06 * max(point.size for point in points), FRAME.left, FRAME.right)
    bottom = min(losses) - 0.12 * reach, max(losses) + 0.15 * reach
    y = Scale(*bottom, FRAME.bottom, FRAME.top)
    axes(drawing, FRAME, x, y, ("size on disk, MB", "Loss, nats/token (lower is better)"))
    taken = _Labels(FRAME)
    for point in points:
        taken.keep_clear(x(point.size), y(point.loss))
    for point in points:
        _mark(drawing, point, x, y)
    for point in points:
        taken.write(drawing, (x(point.size), y(point.loss)), shortened(point.label, 26))
    return drawing.done()


def _mark(drawing: Drawing, point: Point, x: Scale, y: Scale) -> None:
    hint = f"{point.label}: {bytes_(point.size * 1e6)}, {fixed(point.loss)} nats/token"
    style = f"mark {point.style}"
    at, up = x(point.size), y(point.loss)
    if point.ends:
        drawing.line((at, y(point.ends[0]), at, y(point.ends[1])), "whisker")
    if point.style == "other":
        drawing.add(
            "rect", {"x": at - 4, "y": up - 4, "width": 8, "height": 8, "class": style}, hint=hint
        )
    else:
        drawing.add("circle", {"cx": at, "cy": up, "r": 5, "class": style}, hint=hint)


def _budget(budget: Any) -> str:
    number = isinstance(budget, (int, float))
    return f"{100 * budget:.0f}{GAP}%" if number and 0 < budget <= 1 else str(budget)


Place = tuple[float, float, str]
"""Where a label may stand: right of and below its point, and which end of it is there."""

_AROUND: tuple[Place, ...] = (
    (8, 4, "start"),
    (-8, 4, "end"),
    (0, -9, "middle"),
    (0, 18, "middle"),
    (6, -8, "start"),
    (-6, 17, "end"),
)
_OFF_DIAGONAL: tuple[Place, ...] = ((6, 15, "start"), (-6, -8, "end"), *_AROUND)


class _Labels:
    """Puts labels beside points where nothing is yet, and leaves out those that fit nowhere."""

    HEIGHT = 11.0

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._boxes: list[tuple[float, float, float, float]] = []

    def keep_clear(self, x: float, y: float) -> None:
        """Let no label cover this point."""
        self._boxes.append((x - 5, y - 5, x + 5, y + 5))

    def write(
        self,
        drawing: Drawing,
        at: tuple[float, float],
        text: str,
        places: Sequence[Place] = _AROUND,
    ) -> None:
        """Write the text at the first of the places, seen from the point, that is free."""
        wide = LETTER * self.HEIGHT * len(text)
        for right, down, anchor in places:
            x, base = at[0] + right, at[1] + down
            left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * wide
            box = (left, base - self.HEIGHT, left + wide, base + 3)
            if self._free(box):
                self._boxes.append(box)
                drawing.text(x, base, text, "point", anchor)
                return

    def _free(self, box: tuple[float, float, float, float]) -> bool:
        frame = self._frame
        inside = box[0] >= frame.left and box[2] <= frame.right + 14
        inside = inside and box[1] >= frame.top - 8 and box[3] <= frame.bottom
        return inside and not any(_touch(box, other) for other in self._boxes)


def _touch(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
