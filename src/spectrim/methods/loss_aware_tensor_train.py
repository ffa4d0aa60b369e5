"""Tensor train fitted in the two-sided metric: the cores that cost the model's loss least.

½ ‖Lᵀ (W - Ŵ) S‖² has no closed form, since the roots of A and G are no trains. So: whitening by
Kronecker products, which keep a train one; TT-SVD of what that makes of W; then alternating least
squares under the whole moments (Holtz, Rohwedder and Schneider, 2012), by conjugate gradients.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.formats._trains import decomposed, modes, multiplied, rounded
from spectrim.methods import Decomposition
from spectrim.methods._train_cuts import Metric, offered_bonds, train_decomposition
from spectrim.methods._train_fit import Gauge, fitted
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

FORMAT = "tensor_train"
CUTS = 6


def loss_aware_tensor_train(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return trains of a few bond dimensions, each fitted to lower ½ tr(Δᵀ G Δ A).

    The largest starts from the whitened TT-SVD, every other from the fitted train above it.

    Raises:
        ValueError: the statistics hold no input moment or no gradient moment.
    """
    metric = Metric.of(statistics, damping or Damping())
    shape = (weight.shape[0], weight.shape[1])
    pairs, ranks = modes(*shape), offered_bonds(shape, CUTS)
    gauge = Gauge.of(metric, pairs)
    whole = gauge.whitened(weight.double()).float()
    cores = decomposed(whole, pairs, ranks[-1])
    trains, losses = {}, {}
    for rank in reversed(ranks):
        cores = fitted(rounded(cores, rank), gauge, whole)
        trains[rank] = [core.float() for core in gauge.undone(cores)]
        exact = [core.double() for core in trains[rank]]
        losses[rank] = metric.damage(weight.double() - multiplied(exact, shape))
    return train_decomposition(ranks, [losses[rank] for rank in ranks], trains)
