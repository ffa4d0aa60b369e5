"""Tensor train: TT-SVD of the weights themselves (CompactifAI, 2401.14109)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.formats._trains import decomposed, modes, multiplied, rounded
from spectrim.methods import Decomposition
from spectrim.methods._train_cuts import Metric, offered_bonds, train_decomposition
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

FORMAT = "tensor_train"
CUTS = 16
BLIND = True


def tensor_train(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the train of TT-SVD, which minimises ‖W - Ŵ‖² up to a factor, cut by TT-rounding.

    The statistics decide nothing but the losses: ½ tr(Δᵀ G Δ A) of each cut as it will be taken.

    Raises:
        ValueError: the statistics hold no input moment or no gradient moment.
    """
    metric = Metric.of(statistics, damping or Damping())
    shape = (weight.shape[0], weight.shape[1])
    ranks = offered_bonds(shape, CUTS)
    cores = [core.float() for core in decomposed(weight.double(), modes(*shape), ranks[-1])]
    exact = [core.double() for core in cores]
    losses = [
        metric.damage(weight.double() - multiplied(rounded(exact, rank), shape)) for rank in ranks
    ]
    return train_decomposition(ranks, losses, {ranks[-1]: cores})
