"""Attention maps of dense and smaller model beside each other, and their Fourier magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from markupsafe import Markup

from spectrim.report.drawing import Drawing
from spectrim.report.folder import rows
from spectrim.report.heatmap import STEPS
from spectrim.report.words import shortened

_LEFT, _TOP, _SIDE = 78.0, 24.0, 312.0
_WIDTH = 400
_LETTERS = 10


@dataclass(frozen=True)
class Head:
    """The chosen head: where it is, and a map [tokens, tokens] of each model in two ways."""

    block: int
    head: int
    tokens: tuple[str, ...]
    maps: dict[str, list[list[float]]]
    fourier: dict[str, list[list[float]]]


def head(scores: dict[str, Any]) -> Head | None:
    """Return the head whose maps the scores hold; None where they hold none."""
    for row in rows(scores).values():
        for score in row.get("tasks", {}).get("Attention", {}).values():
            told = score.get("settings") or {}
            if told.get("maps"):
                return Head(
                    int(told.get("block", 0)),
                    int(told.get("head", 0)),
                    tuple(map(str, told.get("tokens", ()))),
                    told["maps"],
                    told.get("fourier", {}),
                )
    return None


def attention_figures(found: Head) -> list[Markup]:
    """Return the maps of all models, one after the other, then their Fourier magnitudes.

    Models share a scale, so that equal colours are equal numbers. Attention is coloured by its
    square root: most of a row's tokens get little, and would not be told apart.
    """
    most = _reach(found.maps)[1]
    ends = _reach(found.fourier)
    attention = [
        _map(f"{label}, attention", values, found.tokens, lambda one: (one / most) ** 0.5)
        for label, values in found.maps.items()
    ]
    return attention + [
        _map(f"{label}, Fourier magnitude", values, (), lambda one: _within(one, ends))
        for label, values in found.fourier.items()
    ]


def _reach(maps: dict[str, list[list[float]]]) -> tuple[float, float]:
    known = [one for rows_ in maps.values() for row in rows_ for one in row if isfinite(one)]
    return (min(known), max(max(known), 1e-9)) if known else (0.0, 1.0)


def _within(one: float, ends: tuple[float, float]) -> float:
    return (one - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.0


def _map(title: str, values: list[list[float]], tokens: Sequence[str], part: Any) -> Markup:
    count = len(values)
    side = _SIDE / max(count, 1)
    drawing = Drawing(_WIDTH, _TOP + _SIDE + 26, title, "attention")
    drawing.text(_LEFT, 15, title, "panel", "start")
    squares: dict[int, list[str]] = {}
    for down, row in enumerate(values):
        for across, one in enumerate(row):
            place = f"M{_LEFT + across * side:.2f} {_TOP + down * side:.2f}"
            square = f"{place}h{side:.2f}v{side:.2f}h-{side:.2f}z"
            squares.setdefault(_step(part(one)), []).append(square)
    for step, drawn in sorted(squares.items()):  # one path for each colour: a map has hundreds
        drawing.add("path", {"d": "".join(drawn), "class": f"k{step}"})
    _names(drawing, tokens, side)
    below = "looked at, in the same order" if tokens else "frequency along what is looked at"
    drawing.text(_LEFT + _SIDE / 2, _TOP + _SIDE + 17, below, "label")
    if not tokens:
        drawing.text(_LEFT - 6, _TOP + _SIDE / 2 + 4, "0", anchor="end")
        drawing.text(_LEFT - 6, _TOP + 10, "−½", anchor="end")
        drawing.text(_LEFT - 6, _TOP + _SIDE - 2, "½", anchor="end")
    return drawing.done()


def _names(drawing: Drawing, tokens: Sequence[str], side: float) -> None:
    """Write the tokens at the left of their rows; every second one where rows are too low."""
    every = 1 if side >= 11 else 2 if side >= 5.5 else 4
    for index, token in enumerate(tokens):
        if index % every == 0:
            said = shortened(" ".join(token.split()) or "␣", _LETTERS)
            drawing.text(_LEFT - 6, _TOP + (index + 0.5) * side + 4, said, anchor="end")


def _step(part: float) -> int:
    return min(int(max(part, 0.0) * (STEPS + 1)), STEPS) if isfinite(part) else 0
