"""The rank at the knee of every site's curve of loss, all knees times one factor."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.allocators import Measure
from spectrim.allocators._spending import largest
from spectrim.curve import Curve


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
    return bend(_extents(curve), curve.losses.double()) or 0


def bend(extents: Float[Tensor, " points"], values: Float[Tensor, " points"]) -> int | None:
    """Return where a curve, rising or falling, is furthest ahead of its chord; None if nowhere.

    extents: rising. What is ahead has more of the whole change behind it than of the way.
    """
    across, along = extents[-1] - extents[0], values[-1] - values[0]
    if across <= 0 or along == 0:
        return None
    ahead = (values - values[0]) / along - (extents - extents[0]) / across
    return int(ahead.argmax()) if ahead.max() > 1e-9 else None


def _extents(curve: Curve) -> Float[Tensor, " cuts"]:
    alone = len(curve.sites) == 1 and len(set(curve.methods)) < 2
    return (curve.ranks if alone else curve.sizes).double()
