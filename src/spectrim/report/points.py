"""Every model that is known, as points of size, speed and loss; which are beaten, and by which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spectrim.report.folder import Output, interval, rows, value
from spectrim.report.words import bytes_, fixed

_SAME = ("text", "content", "window", "stride", "tokens")  # agree where two losses compare
_FOUR_BITS = re.compile(r"(int|uint|nf|fp|q)4|\b4[ -]?bit", re.IGNORECASE)
_ALIKE = 5e-4  # nats per token: what three decimals do not tell apart
ON_GRID = (
    "The dense weights lie on a four-bit grid already, which favours four bits here. A model that "
    "was never quantised loses more to them."
)


@dataclass(frozen=True)
class Point:
    """One model: bytes, loss in nats per token, tokens decoded per second where timed.

    ``style`` is "dense", "small", "baseline" or "other". ``over`` is the loss above dense; ``ends``
    the 95 % interval of the loss, given that of the dense model.
    """

    label: str
    style: str
    size: float
    loss: float
    speed: float | None = None
    over: float | None = None
    ends: tuple[float, float] | None = None
    on_disk: bool = True


def known(output: Output, others: Sequence[Output]) -> tuple[list[Point], list[str]]:
    """Return all points, the folder's own first, and the names of folders that do not compare.

    Baselines of further folders are those of the same dense model, so they are not repeated. Where
    there are further folders, the folder's own smaller model goes by the folder's name too.
    """
    found, left_out = points(output.scores), []
    if others:
        taken = [point.label for point in found if point.style != "small"]
        own, *further = names([output, *others], taken)
        found = [replace(one, label=own) if one.style == "small" else one for one in found]
    else:
        further = []
    for other, name in zip(others, further, strict=True):
        more = [point for point in points(other.scores) if point.style == "small"]
        if not more or not comparable(output, other):
            left_out.append(name)
        else:
            found += [replace(point, label=name, style="other") for point in more]
    return found, left_out


def points(scores: dict[str, Any]) -> list[Point]:
    """Return the rows that have bytes and a loss as points."""
    found = []
    for label, row in rows(scores).items():
        disk, loss = value(row, "bytes_of_weights"), value(row, "loss")
        size = disk or value(row, "bytes_in_memory")
        if not size or loss is None:
            continue
        over, ends = value(row, "excess_loss"), interval(row, "excess_loss")
        # Of the difference from dense: both read the same text, so it is what is uncertain.
        reach = ends and over is not None and (loss - over + ends[0], loss - over + ends[1])
        style = label if label in ("dense", "small") else "baseline"
        speed = value(row, "decode")
        found.append(Point(label, style, size, loss, speed, over, reach or None, bool(disk)))
    return found + _earlier(scores.get("earlier"))


def _earlier(run: dict[str, Any] | None) -> list[Point]:
    """Return the best earlier run on the same text and dense model, where there is one."""
    size, loss = value(run, "bytes_of_weights"), value(run, "loss")
    if not run or not size or loss is None:
        return []
    name = str(run.get("name") or "").rstrip("/").rpartition("/")[2]
    label = f"best earlier run, {name}" if name else "best earlier run"
    return [Point(label, "other", size, loss, None, value(run, "excess_loss"))]


def names(outputs: Sequence[Output], taken: Sequence[str] = ()) -> list[str]:
    """Return a name for each folder, numbered where it is taken."""
    used, found = set(taken), []
    for output in outputs:
        name, number = output.name, 2
        while name in used:
            name, number = f"{output.name} ({number})", number + 1
        used.add(name)
        found.append(name)
    return found


def comparable(one: Output, other: Output) -> bool:
    """Return whether losses of two folders compare: same text, same windows, same dense model."""
    settings = one.scores.get("settings", {}), other.scores.get("settings", {})
    same = all(settings[0].get(key) == settings[1].get(key) for key in _SAME)
    return same and _model(one, other) == _model(other, one)


def front(found: Sequence[Point], cost: str = "size") -> list[Point]:
    """Return the points that no other beats, cheapest first.

    A point is beaten by one that costs no more and loses no more, and less of one of the two.
    cost: "size" in bytes, or "speed", of which more is cheaper.
    """
    priced = [(one, _cost(one, cost)) for one in found]
    kept = [
        (price, one.loss, one)
        for one, price in priced
        if price is not None
        and not any(
            other is not one
            and against is not None
            and against <= price
            and other.loss <= one.loss
            and (against < price or other.loss < one.loss)
            for other, against in priced
        )
    ]
    return [one for *_, one in sorted(kept, key=lambda entry: entry[:2])]


def verdicts(found: Sequence[Point]) -> list[str]:
    """Return a sentence for each model that beats the smaller one, or one that none does.

    Nothing is said where there is no smaller model or nothing to compare it with.
    """
    small = next((one for one in found if one.style == "small"), None)
    rivals = [one for one in found if one.style not in ("small", "dense")]
    if small is None or not rivals:
        return []
    beating = [
        one
        for one in found
        if one is not small and one.size <= small.size and one.loss <= small.loss + _ALIKE / 2
    ]
    said = [f"{_beaten(one, small)} {_both(one, small)}" for one in beating]
    as_small = ", ".join(one.label for one in rivals if one.size <= small.size)
    if said or not as_small:
        return said or [f"Nothing here has as few bytes as {small.label} to compare it with."]
    return [f"Nothing here of at most its bytes loses less than {small.label}: not {as_small}."]


def remark(point: Point, on_grid: bool) -> str:
    """Return what must be known beside a point; ``on_grid`` says that of the dense weights."""
    said = [ON_GRID] if on_grid and _FOUR_BITS.search(point.label) else []
    return " ".join(said + ([] if point.on_disk else ["Bytes are those in memory."]))


def on_grid(scores: dict[str, Any]) -> bool:
    """Return whether half of the dense weights or more lie on a four-bit grid."""
    first = next(iter(rows(scores).values()), None)
    return (value(first, "four_bit_grid") or 0.0) >= 0.5


def _model(one: Output, other: Output) -> str:
    marks = one.plan.get("fingerprint"), other.plan.get("fingerprint")
    return str(marks[0] if all(marks) else one.scores.get("model"))


def _cost(point: Point, cost: str) -> float | None:
    if cost == "size":
        return point.size
    return None if point.speed is None else -point.speed


def _beaten(one: Point, small: Point) -> str:
    size = "is smaller" if one.size < 0.995 * small.size else "is as small"
    loss = "loses less" if one.loss < small.loss - _ALIKE / 2 else "loses no more"
    return f"{one.label} {size} and {loss}:"


def _both(one: Point, small: Point) -> str:
    told = [f"{bytes_(point.size)} at {fixed(point.loss)} nats/token" for point in (one, small)]
    return f"{told[0]}, against {told[1]} of {small.label}."
