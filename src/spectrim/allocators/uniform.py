"""The same part of every site: the rule of SVD-LLM (2403.07378) and most published work."""

from __future__ import annotations

from spectrim.allocators import Measure
from spectrim.curve import Curve


def uniform(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve the index of its largest cut within the same part of its dense size.

    budget: what all sites together may take, in the unit of the curves' sizes. A curve with one cut
    only (a protected site) keeps it, and the others share what is left.
    """
    fixed = [len(curve.sizes) == 1 for curve in curves]
    part = 1.0
    while not all(fixed):
        both = list(zip(curves, fixed, strict=True))
        left = budget - sum(float(curve.sizes[0]) for curve, held in both if held)
        part = left / sum(float(curve.sizes[-1]) for curve, held in both if not held)
        # what cannot be as small as its part takes its smallest cut, at the cost of the others
        more = [held or bool(_below(curve, part) == 0) for curve, held in both]
        if more == fixed:
            break
        fixed = more
    return [
        0 if held else _below(curve, part) - 1 for curve, held in zip(curves, fixed, strict=True)
    ]


def _below(curve: Curve, part: float) -> int:
    return int((curve.sizes <= part * curve.sizes[-1] * (1 + 1e-9)).sum())
