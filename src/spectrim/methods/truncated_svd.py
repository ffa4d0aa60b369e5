"""Plain truncated SVD of the weight (Eckart and Young, 1936): blind to inputs and to the loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition, tail_losses, two_factors
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics


def truncated_svd(
    weight: Float[Tensor, "out in"],
    statistics: Statistics | None = None,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the SVD of W; its losses are the squared Frobenius errors of the cuts.

    Statistics and damping are accepted and ignored, as every method is called alike.
    """
    u, values, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return two_factors(u, values[:, None] * vh, values, tail_losses(values, 1.0))
