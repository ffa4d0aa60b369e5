"""What the tasks say as bars with their intervals, models under each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from spectrim.report import tasks, words
from spectrim.report.drawing import LETTER, Drawing, Scale, tick_labels
from spectrim.report.folder import interval, rows, value

WIDTH = 400
LEFT, RIGHT = 62.0, 352.0  # where the bars begin and the longest ends
_HEAD, _BAR, _GAP = 19.0, 15.0, 9.0
MOST = 6  # measures of one figure: more make it taller than a screen


@dataclass(frozen=True)
class Bar:
    """One model's result: value and 95 % interval in the unit of its group."""

    label: str
    value: float
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Group:
    """One measure of one task, with a bar for each model that has it."""

    name: str
    unit: str
    better: str
    bars: tuple[Bar, ...]


def groups(scores: dict[str, Any]) -> list[Group]:
    """Return the measures that two models or more have, flips apart, units together."""
    table = {label: row.get("tasks", {}) for label, row in rows(scores).items()}
    found = []
    for task in dict.fromkeys(task for row in table.values() for task in row):
        own = {label: row.get(task, {}) for label, row in table.items()}
        for name in tasks.measures(list(own.values())):
            group = _group(task, name, own)
            if len(group.bars) > 1:
                found.append(group)
    order = list(dict.fromkeys(group.unit for group in found))
    return sorted(found, key=lambda group: order.index(group.unit))


def figures(scores: dict[str, Any]) -> list[Markup]:
    """Return figures of up to ``MOST`` measures; those of one unit share their axis."""
    found = groups(scores)
    labels = [row for row in rows(scores) if any(row == bar.label for bar in _bars(found))]
    made = []
    for unit in dict.fromkeys(group.unit for group in found):
        own = [group for group in found if group.unit == unit]
        scale = _scale(own)
        count = -(-len(own) // MOST)
        size = -(-len(own) // count)  # as even as can be, so that columns end alike
        made += [
            _figure(own[start : start + size], scale, labels) for start in range(0, len(own), size)
        ]
    return made


def _group(task: str, name: str, own: dict[str, dict[str, Any]]) -> Group:
    score = next(row[name] for row in own.values() if name in row)
    bars = tuple(
        Bar(label, found, interval(row, name))
        for label, row in own.items()
        if (found := value(row, name)) is not None
    )
    said = f"{task}, {words.measure(name)}"
    return Group(said, str(score.get("unit") or ""), str(score.get("better")), bars)


def _bars(found: Iterable[Group]) -> list[Bar]:
    return [bar for group in found for bar in group.bars]


def _scale(own: list[Group]) -> Scale:
    ends = [end for bar in _bars(own) for end in (bar.value, *(bar.ends or ()))]
    high = 1.0 if own[0].unit == "share" else 1.04 * max(*ends, 0.0)
    low = min(*ends, 0.0)
    return Scale(low, high if high > low else low + 1.0, LEFT, RIGHT)


def _figure(own: list[Group], scale: Scale, labels: list[str]) -> Markup:
    tall = sum(_HEAD + _BAR * len(group.bars) + _GAP for group in own)
    unit = {"share": "per cent", "": "no unit"}.get(own[0].unit, own[0].unit)
    drawing = Drawing(WIDTH, tall + 38, f"Tasks in {unit}, bars with intervals", "bars")
    for tick, shown in tick_labels(scale, 5):
        said = f"{100 * tick:.0f}" if own[0].unit == "share" else shown
        drawing.line((scale(tick), 4, scale(tick), tall), "grid")
        drawing.text(scale(tick), tall + 14, said)
    drawing.text((LEFT + RIGHT) / 2, tall + 31, unit, "label")
    top = 0.0
    for group in own:
        _name(drawing, group, top)
        for index, bar in enumerate(group.bars):
            place = top + _HEAD + _BAR * index
            _bar(drawing, group, bar, place, (scale, labels.index(bar.label)))
        top += _HEAD + _BAR * len(group.bars) + _GAP
    return drawing.done()


def _name(drawing: Drawing, group: Group, top: float) -> None:
    arrow = words.ARROWS.get(group.better, "")
    name = words.shortened(group.name, int((WIDTH - 20) / (LETTER * 11.5)))
    drawing.text(2, top + 13, f"{name} {arrow}".strip(), "label", "start")


def _bar(drawing: Drawing, group: Group, bar: Bar, top: float, drawn: tuple[Scale, int]) -> None:
    scale, tone = drawn
    shown = f"{100 * bar.value:.1f}" if group.unit == "share" else words.plain(bar.value)
    start, end = sorted((scale(max(scale.low, 0.0)), scale(bar.value)))
    hint = f"{group.name}, {bar.label}: {shown}{_interval(group, bar)}"
    box = {"x": start, "y": top + 2, "width": max(end - start, 0.5), "height": _BAR - 4}
    drawing.add("rect", {**box, "class": f"bar m{min(tone, 3)}"}, hint=hint)
    if bar.ends:
        low, high, middle = scale(bar.ends[0]), scale(bar.ends[1]), top + _BAR / 2
        drawing.line((low, middle, high, middle), "reach")
    drawing.text(LEFT - 6, top + 11.5, words.shortened(bar.label, 8), anchor="end")
    drawing.text(WIDTH - 2, top + 11.5, shown, "point", "end")


def _interval(group: Group, bar: Bar) -> str:
    if bar.ends is None:
        return ""
    low, high = (100 * end if group.unit == "share" else end for end in bar.ends)
    return f", 95 % interval {words.plain(low)} to {words.plain(high)}"
