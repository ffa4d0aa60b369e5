"""The common currency of all methods: predicted increase of the model's loss, nats per token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics


def currency_losses(
    decomposition: Decomposition,
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    damping: Damping,
) -> Float[Tensor, " cuts"]:
    """Return ½ ‖G^½ (W - Ŵ_r) A^½‖² of every cut r = 0 … full of any decomposition.

    With components u_i v_i it is ½ (tr(WᵀGWA) - 2 Σ u_iᵀ G W A v_iᵀ + Σ (u_iᵀ G u_j)(v_i A v_jᵀ)),
    summed up to r (docs/methods.md, section 1).

    Raises:
        ValueError: the statistics hold no gradient moment.
    """
    seen = statistics.loss_inputs
    if seen is None or statistics.gradient_moment is None:
        raise ValueError("the common currency needs the input moment and the gradient moment")
    if not seen.any() or not statistics.gradient_moment.any():
        return torch.zeros_like(decomposition.losses)  # nothing reaches the loss
    inputs = damped(seen, damping.input)
    gradients = damped(statistics.gradient_moment, damping.gradient)
    weight, left = weight.double(), decomposition.left.double()
    right = decomposition.right.double()
    crossed = (((left.T @ gradients) @ weight @ inputs) * right).sum(1).cumsum(0)  # [full]
    gram = (left.T @ gradients @ left) * (right @ inputs @ right.T)  # [full, full]
    squares = gram.cumsum(0).cumsum(1).diagonal()  # [full]
    whole = ((gradients @ weight) * (weight @ inputs)).sum()
    losses = 0.5 * (whole - 2 * crossed + squares).clamp_min(0)
    return torch.cat((0.5 * whole[None], losses)).float()
