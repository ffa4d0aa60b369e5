"""One part of the break-even rank at every site, and dense from the first block on what is left."""

from __future__ import annotations

from spectrim.allocators import Measure
from spectrim.allocators._spending import dense, largest, spent
from spectrim.curve import Curve


def break_even(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve the cut at a common part of its break-even rank, or the dense matrix.

    Two factors store as much as an m × n matrix at rank mn / (m + n); the feature decomposition of
    SFSD (2405.13039) starts from it, gives ranks as parts of it, and leaves dense what would have
    to exceed it. The part, at most 1, is as large as the budget allows. Where all of it fits, what
    is left makes sites dense, from the first block on: SFSD takes the last ones first. Formats that
    store less than two factors (pivoted) thus leave more sites dense.

    A curve of several methods or sites has no such rank (it has no singular values), and takes the
    part of its dense size, which for two factors is the same.
    budget: in the unit of the curves' sizes. measure: not needed.
    """

    def choose(part: float) -> list[int]:
        return [_within(curve, part) for curve in curves]

    chosen = largest(curves, budget, choose, 0.0, 1.0)
    if chosen != choose(1.0):
        return chosen
    for place, whole in enumerate(dense(curves)):
        tried = [*chosen[:place], whole, *chosen[place + 1 :]]
        if spent(curves, tried) > budget:
            break
        chosen = tried
    return chosen


def _within(curve: Curve, part: float) -> int:
    """Return the largest cut, the dense matrix apart, within a part of break-even."""
    if curve.values is None:
        allowed = curve.sizes[:-1] <= part * curve.sizes[-1]
    else:
        out, inner = curve.site.out_features, curve.site.in_features
        allowed = curve.ranks[:-1] <= part * out * inner / (out + inner)
    return max(int(allowed.sum()) - 1, 0)
