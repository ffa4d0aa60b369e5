"""Fisher-weighted SVD (FWSVD, 2207.00112): outputs weighted by how much the loss feels them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition, tail_losses, two_factors
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

SMALLEST = 1e-6  # of the largest weight, so that an output without gradient can be scaled back


def fisher_weighted_svd(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the SVD of D W, D undone, with D_ii the root of the Fisher information of row i.

    The published weight sums (∂ℓ/∂W_ij)² over a row; under K-FAC its mean is G_ii tr A, and the
    trace, the same for all rows, is left out. Losses are squared weighted errors. Damping is
    accepted and ignored.

    Raises:
        ValueError: the statistics hold no gradient moment.
    """
    if statistics.gradient_moment is None:
        raise ValueError("fisher_weighted_svd needs the gradient moment")
    scale = statistics.gradient_moment.double().diagonal().clamp_min(0).sqrt()
    scale = scale.clamp_min(SMALLEST * scale.max()) if scale.any() else torch.ones_like(scale)
    u, values, vh = torch.linalg.svd(scale[:, None] * weight.double(), full_matrices=False)
    return two_factors(u / scale[:, None], values[:, None] * vh, values, tail_losses(values, 0.5))
