"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Callable
from math import floor, isfinite, log10
from typing import Any

MISSING = "–"
NOT_MEASURED = "not measured"
BROKE = "broke"
GAP = "\u00a0"  # between number and unit, where a line must not break
ARROWS = {"lower": "↓", "higher": "↑", "none": ""}
_WRITTEN = {
    "f1": "F1",
    "mcnemar": "McNemar",
    "icat": "ICAT",
    "lms": "LMS",
    "ss": "SS",
    "npmi": "NPMI",
    "nmi": "NMI",
    **{f"rouge{kind}": f"ROUGE-{kind}" for kind in ("1", "2", "L", "Lsum", "S", "SU")},
}
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def plain(number: float | None, digits: int = 3) -> str:
    """Return at least ``digits`` significant digits, without exponents from 1e-4 to 1e7."""
    if number is None or not isfinite(number):
        return MISSING
    if number == 0:
        return "0"
    size = floor(log10(abs(number)))
    if not -5 < size < 7:
        return f"{number:.{digits - 1}e}".replace("-", "−")
    return f"{number:,.{max(0, digits - 1 - size)}f}".replace("-", "−")


def increase(number: float | None) -> str:
    """Return a measured increase; None is one that is beyond all numbers."""
    return BROKE if number is None else plain(number)


def whole(number: float | None) -> str:
    """Return a whole number, such as a rank; formats that have none leave it out."""
    return MISSING if number is None else str(number)


def stored_as(one: dict[str, Any]) -> str:
    """Return a map's format, and how many bits its numbers take where these are few."""
    if one.get("trellis"):
        return f"trellis, {one['trellis'] / 16:g} bits"
    return str(one["format"]) + (f", {one['bits']} bits" if one.get("bits") else "")


def fixed(number: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return ``digits`` decimals; with ``sign``, a plus where it is positive."""
    if number is None or not isfinite(number):
        return MISSING
    shown = f"{number:+,.{digits}f}" if sign else f"{number:,.{digits}f}"
    if float(shown.replace(",", "")) == 0:
        shown = shown.lstrip("+-")
    return shown.replace("-", "−")


def share(part: float | None, digits: int = 1) -> str:
    """Return a part of one as per cent."""
    return MISSING if part is None or not isfinite(part) else f"{100 * part:.{digits}f}{GAP}%"


def measure(name: str) -> str:
    """Return a measure's name in words, as papers write it."""
    return " ".join(_WRITTEN.get(word, word) for word in name.split("_"))


def probability(p: float | None) -> str:
    """Return a p-value; small ones only as small."""
    if p is None or not isfinite(p):
        return f"p{GAP}{MISSING}"
    return f"p{GAP}<{GAP}0.001" if p < 0.001 else f"p{GAP}{p:.2g}" if p < 0.1 else f"p{GAP}{p:.2f}"


def change(difference: float | None, unit: str = "") -> str:
    """Return a difference with its sign; of shares in percentage points."""
    if unit != "share" or difference is None:
        return fixed(difference, sign=True)
    return fixed(100 * difference, 1, sign=True) + f"{GAP}pts"


def half(ends: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    """Return half an interval after its sign, or nothing where there is none."""
    return f" ±{GAP}{show((ends[1] - ends[0]) / 2)}" if ends else ""


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def times(ratio: float | None) -> str:
    """Return a ratio as a factor."""
    if ratio is None or not isfinite(ratio):
        return MISSING
    digits = 3 if 0 < abs(ratio - 1) < 0.01 else 2  # so that a little saved is not nothing saved
    return f"×{GAP}{ratio:.{digits}f}"


def count(number: float | None, unit: str = "") -> str:
    """Return three or four significant digits with k, M, G, T in powers of a thousand."""
    if number is None or not isfinite(number):
        return MISSING
    for step, letter in _STEPS:
        if abs(number) >= step * 0.99995:
            scaled = number / step
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 999.95 else 0
            return f"{scaled:.{digits}f}{GAP}{letter}{unit}"
    return f"{number:.0f}{GAP}{unit}" if unit else f"{number:.0f}"


def bytes_(number: float | None) -> str:
    """Return a size in kB, MB, GB of powers of a thousand."""
    return count(number, "B")


def span(ends: tuple[float, float] | None, digits: int = 3) -> str:
    """Return an interval, or nothing where there is none."""
    return "" if ends is None else f"{fixed(ends[0], digits)} to {fixed(ends[1], digits)}"


def shortened(text: str, most: int) -> str:
    """Return the text, its middle left out where it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"
