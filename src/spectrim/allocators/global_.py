"""One budget for the whole model: every site gets what buys the most loss for its size."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.allocators import Measure
from spectrim.curve import Curve


def global_(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve the index of its cut so that the summed loss is least within budget.

    For a multiplier λ every site takes the cut that minimises loss + λ size, over all its cuts, as
    the curves need not be convex; λ is bisected until the budget is just met, and the gap that
    remains is spent on the exchanges that gain most for their size (docs/methods.md, section 1).
    budget: in the unit of the curves' sizes. measure: not needed.
    """
    if budget >= sum(float(curve.sizes[-1]) for curve in curves):
        return [len(curve.sizes) - 1 for curve in curves]  # also where a smaller cut loses nothing
    sizes, losses = _table(curves)
    low, high = 0.0, 1.0
    while _total(sizes, _best(sizes, losses, high)) > budget and high < 1e30:
        high *= 4.0
    for _ in range(200):
        middle = (low + high) / 2
        if _total(sizes, _best(sizes, losses, middle)) > budget:
            low = middle
        else:
            high = middle
    return _spend_gap(sizes, losses, _best(sizes, losses, high), budget).tolist()


def _table(
    curves: list[Curve],
) -> tuple[Float[Tensor, "sites cuts"], Float[Tensor, "sites cuts"]]:
    """Return sizes and losses of all curves, padded with cuts that nobody would take."""
    width = max(len(curve.sizes) for curve in curves)
    sizes = torch.full((len(curves), width), torch.inf, dtype=torch.float64)
    losses = torch.full((len(curves), width), torch.inf, dtype=torch.float64)
    for row, curve in enumerate(curves):
        sizes[row, : len(curve.sizes)] = curve.sizes.double()
        losses[row, : len(curve.losses)] = curve.losses.double()
    return sizes, losses


def _best(
    sizes: Float[Tensor, "sites cuts"], losses: Float[Tensor, "sites cuts"], multiplier: float
) -> Int[Tensor, " sites"]:
    priced = losses + multiplier * sizes.where(sizes.isfinite(), torch.zeros_like(sizes))
    return priced.argmin(dim=1)


def _total(sizes: Float[Tensor, "sites cuts"], chosen: Int[Tensor, " sites"]) -> float:
    return float(sizes.gather(1, chosen[:, None]).sum())


def _spend_gap(
    sizes: Float[Tensor, "sites cuts"],
    losses: Float[Tensor, "sites cuts"],
    chosen: Int[Tensor, " sites"],
    budget: float,
) -> Int[Tensor, " sites"]:
    while True:
        more = sizes - sizes.gather(1, chosen[:, None])
        gain = losses.gather(1, chosen[:, None]) - losses
        fits = (more > 0) & (more <= budget - _total(sizes, chosen)) & (gain > 0)
        if not bool(fits.any()):
            return chosen
        rate = torch.where(fits, gain / more, -torch.inf)
        site, cut = divmod(int(rate.argmax()), rate.shape[1])
        chosen[site] = cut
