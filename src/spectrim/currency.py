"""The common currency of all methods: predicted increase of the model's loss, nats per token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Damping, Decomposition, damped_root
from spectrim.statistics import Statistics


def currency_losses(
    decomposition: Decomposition,
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    damping: Damping,
) -> Float[Tensor, " cuts"]:
    """Return ½ ‖G^½ (W - Ŵ_r) A^½‖² of every cut r = 0 … full of any decomposition.

    With M = Lᵀ W S and the weighted components p_i = Lᵀ left_i, q_i = right_i S it is
    ½ (‖M‖² - 2 Σ p_iᵀ M q_i + Σ (p_i·p_j)(q_i·q_j)), summed up to r (docs/methods.md, section 1).

    Raises:
        ValueError: the statistics hold no gradient moment.
    """
    if statistics.input_moment is None or statistics.gradient_moment is None:
        raise ValueError("the common currency needs the input moment and the gradient moment")
    input_root = damped_root(statistics.input_moment, damping.input)
    gradient_root = damped_root(statistics.gradient_moment, damping.gradient)
    middle = gradient_root.T @ weight.double() @ input_root  # [out, in]
    left = gradient_root.T @ decomposition.left.double()  # [out, full]
    right = decomposition.right.double() @ input_root  # [full, in]
    crossed = ((left.T @ middle) * right).sum(1).cumsum(0)  # [full]
    gram = (left.T @ left) * (right @ right.T)  # [full, full]
    squares = gram.cumsum(0).cumsum(1).diagonal()  # [full]
    whole = middle.square().sum()
    losses = 0.5 * (whole - 2 * crossed + squares).clamp_min(0)
    return torch.cat((0.5 * whole[None], losses)).float()
