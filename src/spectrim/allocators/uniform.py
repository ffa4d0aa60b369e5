"""The same part of every site: the rule of SVD-LLM (2403.07378) and most published work."""

from __future__ import annotations

from spectrim.plan import Curve


def uniform(curves: list[Curve], budget: float) -> list[int]:
    """Return for every curve the index of its largest cut within the same part of its dense size.

    budget: what all sites together may take, in the unit of the curves' sizes. A curve with one cut
    only (a protected site) keeps it, and the others share what is left.
    """
    free = [curve for curve in curves if len(curve.sizes) > 1]
    fixed = sum(float(curve.sizes[-1]) for curve in curves if len(curve.sizes) == 1)
    whole = sum(float(curve.sizes[-1]) for curve in free)
    part = (budget - fixed) / whole if whole else 1.0
    return [
        len(curve.sizes) - 1
        if len(curve.sizes) == 1
        else max(int((curve.sizes <= part * curve.sizes[-1] * (1 + 1e-9)).sum()) - 1, 0)
        for curve in curves
    ]
