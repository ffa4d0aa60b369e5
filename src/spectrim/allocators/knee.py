"""The rank at the knee of every site's curve of loss, all knees times one factor."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.allocators import Measure
from spectrim.allocators._spending import largest
from spectrim.plan import Curve


def knee(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve the largest cut whose rank is within a common factor of its knee.

    The knee is found by Kneedle (Satopää et al. 2011, "Finding a Kneedle in a haystack"): rank and
    loss are scaled to [0, 1], and it is where the curve lies farthest below its chord. The curve is
    the predicted loss and smooth, so there is no smoothing, and one knee. A site that the factor
    takes to its full rank is dense. The factor is as large as the budget allows. Where several
    methods or sites share a curve, whose ranks mean different things, sizes stand for ranks.
    budget: in the unit of the curves' sizes. measure: not needed.
    """
    extents = [_extents(curve) for curve in curves]
    knees = [float(one[knee_of(curve)]) for one, curve in zip(extents, curves, strict=True)]

    def choose(factor: float) -> list[int]:
        return [
            max(int((one <= factor * at).sum()) - 1, 0)
            for one, at in zip(extents, knees, strict=True)
        ]

    full = max(float(one[-1]) / at for one, at in zip(extents, knees, strict=True))
    return largest(curves, budget, choose, 0.0, full)


def knee_of(curve: Curve) -> int:
    """Return the cut at the knee of loss against rank; the first where there is no bend."""
    extents, losses = _extents(curve), curve.losses.double()
    across, down = extents[-1] - extents[0], losses[0] - losses[-1]
    if across <= 0 or down <= 0:
        return 0
    return int((1 - (extents - extents[0]) / across - (losses - losses[-1]) / down).argmax())


def _extents(curve: Curve) -> Float[Tensor, " cuts"]:
    alone = len(curve.sites) == 1 and len(set(curve.methods)) < 2
    return (curve.ranks if alone else curve.sizes).double()
