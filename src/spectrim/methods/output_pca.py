"""Feature PCA (SFSD, 2405.13039): the outputs projected on their principal components.

With C = E[(y - ȳ)(y - ȳ)ᵀ] = W A_c Wᵀ and V_r its first eigenvectors, Ŵ = V_r (V_rᵀ W); the bias
becomes V_r V_rᵀ b + (I - V_r V_rᵀ) ȳ. Without centring this is the projection that whitened SVD
makes: left singular vectors of W A^½ are eigenvectors of W A Wᵀ.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.methods.loss_aware_svd import principal_outputs
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics

CENTRED = True


def output_pca(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the projections of the outputs on their first principal components.

    statistics: with the inputs already centred. No inverse is taken, so ‖Ŵ‖ ≤ ‖W‖, and damping of
    the inputs only settles directions that no output took.

    Raises:
        ValueError: the statistics hold no input moment.
    """
    if statistics.input_moment is None:
        raise ValueError("output_pca needs the input moment")
    damping = damping or Damping()
    return principal_outputs(weight, damped(statistics.input_moment, damping.input))
