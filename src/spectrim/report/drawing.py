"""Inline SVG: scales, axes and shapes, coloured by the page's style sheet alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup, escape

# What a letter of the figures' type is wide, in parts of its height: an upper bound for labels.
LETTER = 0.62


@dataclass(frozen=True)
class Scale:
    """Takes values low … high to positions start … end, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position; values beyond the ends stay at the ends."""
        low, high = self._at(self.low), self._at(self.high)
        part = (self._at(max(value, 1e-300)) if self.log else value) - low
        part = min(max(part / (high - low), 0.0), 1.0) if high > low else 0.5
        return self.start + part * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values within the scale, at most about ``most`` of them."""
        return _decades(self.low, self.high, most) if self.log else _round(self, most)

    def _at(self, value: float) -> float:
        return log10(value) if self.log else value


@dataclass(frozen=True)
class Frame:
    """Where the axes of a figure lie: left and right, top and bottom."""

    left: float
    right: float
    top: float
    bottom: float


class Drawing:
    """An SVG figure under construction; everything that is text in it is escaped.

    ``label`` tells those who cannot see the figure what it shows.
    """

    def __init__(self, width: float, height: float, label: str, style: str = "") -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(width)} '
            f'{_number(height)}" role="img" aria-label="{escape(label)}" class="{escape(style)}" '
            # A figure of few cells must not have larger type than one of many.
            f'style="max-width:{_number(1.17 * width)}px">'
        ]

    def add(
        self, tag: str, attributes: Mapping[str, str | float], text: str = "", hint: str = ""
    ) -> None:
        """Add an element; ``hint`` appears where the pointer rests."""
        written = " ".join(f'{name}="{_value(one)}"' for name, one in attributes.items())
        told = f"<title>{escape(hint)}</title>" if hint else ""
        self._parts.append(f"<{tag} {written}>{told}{escape(text)}</{tag}>")

    def text(
        self, x: float, y: float, text: str, style: str = "tick", anchor: str = "middle"
    ) -> None:
        """Add a text at its baseline."""
        where: dict[str, str | float] = {"x": x, "y": y, "class": style, "text-anchor": anchor}
        self.add("text", where, text)

    def line(self, ends: tuple[float, float, float, float], style: str) -> None:
        """Add a straight line from (x, y) to (x, y)."""
        names = ("x1", "y1", "x2", "y2")
        self.add("line", {**dict(zip(names, ends, strict=True)), "class": style})

    def path(self, points: Iterable[tuple[float, float]], style: str, hint: str = "") -> None:
        """Add a line through the points."""
        steps = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        self.add("path", {"d": f"M{steps}", "class": style}, hint=hint)

    def done(self) -> Markup:
        """Return the figure as it goes into the page."""
        return Markup("".join(self._parts) + "</svg>")  # every part was escaped when it was added


def axes(drawing: Drawing, frame: Frame, x: Scale, y: Scale, labels: tuple[str, str]) -> None:
    """Draw grid lines, ticks and labels; the vertical axis is named above it, to be read level."""
    for tick, shown in tick_labels(y, 5):
        drawing.line((frame.left, y(tick), frame.right, y(tick)), "grid")
        drawing.text(frame.left - 6, y(tick) + 4, shown, anchor="end")
    for tick, shown in tick_labels(x, 6):
        drawing.line((x(tick), frame.bottom, x(tick), frame.bottom + 4), "axis")
        drawing.text(x(tick), frame.bottom + 17, shown)
    drawing.line((frame.left, frame.bottom, frame.right, frame.bottom), "axis")
    drawing.text((frame.left + frame.right) / 2, frame.bottom + 34, labels[0], "label")
    if labels[1]:
        drawing.text(2, frame.top - 13, labels[1], "label", anchor="start")


def tick_labels(scale: Scale, most: int) -> list[tuple[float, str]]:
    """Return the ticks of a scale with their labels, all written in the same way."""
    ticks = scale.ticks(most)
    if scale.log and any(not 1e-3 <= tick < 1e4 for tick in ticks):
        return [(tick, _power(tick)) for tick in ticks]
    if scale.log:
        return [(tick, f"{tick:.10g}") for tick in ticks]
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=1.0)
    digits = next((digits for digits in range(20) if step * 10**digits > 0.999), 20)
    return [(tick, f"{tick:,.{digits}f}".replace("-", "−")) for tick in ticks]


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if mantissa == "1" else f"{mantissa}·10{power}"


def _round(scale: Scale, most: int) -> list[float]:
    reach = scale.high - scale.low
    if reach <= 0:
        return [scale.low]
    rough = 10 ** floor(log10(reach / most))
    step = next(rough * part for part in (1, 2, 5, 10, 20) if reach / (rough * part) <= most)
    first, last = ceil(scale.low / step - 1e-9), floor(scale.high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = floor(log10(low) - 1e-9), ceil(log10(high) + 1e-9)
    powers = range(first, last + 1)
    for parts in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [part * 10.0**power for power in powers for part in parts]
        found = [one for one in found if low * (1 - 1e-9) <= one <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found
    every = ceil(len(found) / most)
    return found[::every]


def _value(one: str | float) -> str:
    return str(escape(one)) if isinstance(one, str) else _number(one)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
