"""Signs of a factor flipped, column by column, where that lowers the loss, all else as it is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

HALVINGS = 6  # of the rows that flip together, until they pay


def flipped(
    matrix: Float[Tensor, "rows columns"],
    factor: Float[Tensor, "rows rank"],
    other: Float[Tensor, "columns rank"],
    metric: tuple[Float[Tensor, "rows rows"], Float[Tensor, "columns columns"]],
) -> Float[Tensor, "rows rank"]:
    """Return the signs of a factor, ½ tr(Δᵀ G Δ H) of Δ = factor otherᵀ - matrix never higher.

    A flip of row i of column k changes the loss by (G R)_ik d + ½ G_ii M_kk d², with R = Δ H other,
    M = otherᵀ H other and d = -2 factor_ik. Rows know of each other through G: those that gain by
    themselves flip together, the better half of them where together they do not pay, and so on.
    metric: G and H.
    """
    g, h = metric
    seen = h @ other
    gram = other.T @ seen  # [rank, rank]
    slope = (g @ (factor @ gram - matrix @ seen)).T.contiguous()  # [rank, rows]
    left = factor.T.contiguous()
    own = g.diagonal()
    for k in range(len(left)):
        step = -2 * left[k]
        gain = -(slope[k] * step + 0.5 * own * gram[k, k] * step.square())
        chosen = gain > 0
        for _ in range(HALVINGS):
            change = torch.where(chosen, step, 0.0)
            felt = g @ change
            if change @ slope[k] + 0.5 * gram[k, k] * (change @ felt) < 0:
                left[k] += change
                slope.addr_(gram[k], felt)
                break
            if not chosen.any():
                break
            chosen = chosen & (gain > gain[chosen].median())
    return torch.where(left.T < 0, -1.0, 1.0)
