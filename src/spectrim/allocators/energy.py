"""The same share of energy, Σσ² of what is kept, at every site: the explained variance of PCA."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.allocators import Measure
from spectrim.allocators._spending import largest
from spectrim.curve import Curve


def energy(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve the smallest cut whose share of energy reaches a common threshold.

    The share of rank r is Σ_{i≤r} σ_i² / Σ σ_i², the cumulative share of variance by which
    principal components are counted (Jolliffe, Principal Component Analysis, 2002, section 6.1.1).
    The threshold is as high as the budget allows. A curve of several methods or sites has no
    singular values; where there is one, the share of every curve is 1 - loss / loss of the smallest
    cut, so that all are on one scale.
    budget: in the unit of the curves' sizes. measure: not needed.
    """
    return by_share(curves, budget, power=2)


def by_share(curves: list[Curve], budget: float, power: int) -> list[int]:
    """Return for every curve the smallest cut whose share of Σσ^power reaches a threshold."""
    known = all(curve.values is not None for curve in curves if len(curve.sizes) > 1)
    shares = [_shares(curve if known else replace(curve, values=None), power) for curve in curves]

    def choose(threshold: float) -> list[int]:
        return [min(int((share < threshold).sum()), len(share) - 1) for share in shares]

    return largest(curves, budget, choose, 0.0, 1.0)


def _shares(curve: Curve, power: int) -> Float[Tensor, " cuts"]:
    """Return the part of Σσ^power that every cut keeps, 1 of the dense matrix."""
    if curve.values is not None:
        kept = curve.values.double().pow(power).cumsum(0)
        found = kept[curve.ranks.clamp(1, len(kept)) - 1] / kept[-1].clamp_min(1e-300)
    else:  # a loss is a tail of Σσ² where there are singular values
        losses = curve.losses.double()
        found = 1 - (losses / losses[0].clamp_min(1e-300)).clamp_min(0).pow(power / 2)
    found[-1] = 1.0
    return torch.cummax(found, 0).values
