"""Activation-aware SVD (ASVD, 2312.05821): inputs weighted by how large they are, one by one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition, tail_losses, two_factors
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

ALPHA = 0.5  # of the paper
SMALLEST = 1e-6  # of the largest scale, so that a dead input can be scaled back


def activation_scaled_svd(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the SVD of W S, S undone, with S = diag(E[x²]^(α/2)) and α = 0.5.

    The published scale is E|x|^α; here it is the root mean square, which the second moment already
    holds. Losses are squared scaled errors. Damping is accepted and ignored.

    Raises:
        ValueError: the statistics hold no input moment.
    """
    if statistics.input_moment is None:
        raise ValueError("activation_scaled_svd needs the input moment")
    scale = statistics.input_moment.double().diagonal().clamp_min(0).sqrt() ** ALPHA
    scale = scale.clamp_min(SMALLEST * scale.max()) if scale.any() else torch.ones_like(scale)
    u, values, vh = torch.linalg.svd(weight.double() * scale, full_matrices=False)
    return two_factors(u, values[:, None] * vh / scale, values, tail_losses(values, 0.5))
