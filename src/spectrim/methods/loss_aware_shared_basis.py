"""One basis for the maps of a block that read the same input, cut where the loss feels it least.

For gradients of different maps taken as uncorrelated, G of the stack [W_1; W_2; …] is block-
diagonal, and the best basis is that of the loss-aware SVD (loss_aware_svd.py) of the stack.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.methods.shared_basis import FORMAT as FORMAT
from spectrim.methods.shared_basis import ROLES as ROLES
from spectrim.methods.shared_basis import common_basis
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics


def loss_aware_shared_basis(
    weight: dict[str, Float[Tensor, "_ in"]],
    statistics: dict[str, Statistics],
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the cuts of the stack that minimise Σ_s ½ ‖G_s^½ (W_s - U_s V) A^½‖² over one V.

    weight and statistics are by role, the owner of the basis first; their inputs are one. losses
    are the whole group's, in nats per token.

    Raises:
        ValueError: statistics hold no input moment or no gradient moment.
    """
    return common_basis(weight, statistics, damping or Damping(), loss_aware=True)
