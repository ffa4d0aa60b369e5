"""One-sided whitening (SVD-LLM, 2403.07378): the cut with the least error of the output."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.methods.loss_aware_svd import two_sided_svd
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics


def whitened_svd(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the decomposition whose cuts minimise ½ E‖(W - Ŵ) x‖².

    It is the two-sided one with G = I, so its losses are squared outputs, not nats.

    Raises:
        ValueError: the statistics hold no input moment.
    """
    if statistics.input_moment is None:
        raise ValueError("whitened_svd needs the input moment")
    damping = damping or Damping()
    return two_sided_svd(weight, damped(statistics.input_moment, damping.input), None)
