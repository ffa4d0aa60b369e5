"""Neuron selection that keeps at each step the neuron which lowers the model's loss most.

With S kept, what least squares leave of h has the moment R = A - A[:, S] A[S, S]⁻¹ A[S, :], and the
predicted loss is ½ tr(Wᵀ G W R). A further neuron j takes R[:, j] R[j, :] / R[j, j] off R, so that
its gain is ½ ‖G^½ W R[:, j]‖² / R[j, j].
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.methods.neuron_selection import (
    CENTRED as CENTRED,
)
from spectrim.methods.neuron_selection import (
    FORMAT as FORMAT,
)
from spectrim.methods.neuron_selection import (
    ROLES as ROLES,
)
from spectrim.methods.neuron_selection import (
    narrowed,
)
from spectrim.walk.moments import Damping, cholesky
from spectrim.walk.statistics import Statistics

BLOCK = 32  # neurons between two updates of the large matrices, which are then products of blocks
EXPLAINED = 1e-10  # a neuron of which no more than this part is left adds nothing but rounding


def loss_aware_neuron_selection(
    weight: dict[str, Tensor],
    statistics: dict[str, Statistics],
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the widths of an MLP, its neurons ordered by what each lowers ½ tr(Δᵀ G Δ A).

    Raises:
        ValueError: the down map's statistics hold no input moment or no gradient moment.
    """
    return narrowed(weight, statistics, damping or Damping(), _by_gain)


def _by_gain(
    down: Float[Tensor, "out neurons"],
    inputs: Float[Tensor, "neurons neurons"],
    gradients: Float[Tensor, "out out"],
) -> Int[Tensor, " neurons"]:
    """Return the neurons in the order of a greedy choice, ``BLOCK`` of them at a time."""
    residual, left = inputs, torch.arange(len(inputs))
    effect = cholesky(gradients).T @ down @ inputs  # G^½ W R, [out, left]
    least = EXPLAINED * inputs.diagonal()
    order = []
    while len(left):
        chosen, columns, steps = _chosen(residual, effect, least)
        order.append(left[chosen])
        kept = torch.ones(len(left), dtype=torch.bool)
        kept[chosen] = False
        columns, left, least = columns[kept], left[kept], least[kept]
        residual = residual[kept][:, kept].addmm_(columns, columns.T, alpha=-1)
        effect = effect[:, kept].addmm_(steps, columns.T, alpha=-1)
    return torch.cat(order)


def _chosen(
    residual: Float[Tensor, "left left"],
    effect: Float[Tensor, "out left"],
    least: Float[Tensor, " left"],
) -> tuple[Int[Tensor, " block"], Float[Tensor, "left block"], Float[Tensor, "out block"]]:
    """Return the next neurons, and the factors that they take off R and off G^½ W R.

    R loses columns columnsᵀ and G^½ W R loses steps columnsᵀ; the two are not touched themselves.
    """
    size = min(BLOCK, len(residual))
    columns, steps = residual.new_zeros(len(residual), size), effect.new_zeros(len(effect), size)
    squares, remaining = effect.square().sum(0), residual.diagonal().clone()
    open_ = torch.ones(len(residual), dtype=torch.bool)
    chosen = []
    for done in range(size):
        gains = torch.where(remaining > least, squares / remaining, 0.0)
        best = int(torch.where(open_, gains, -math.inf).argmax())
        scale = float(remaining[best].sqrt()) if remaining[best] > least[best] else math.inf
        past = columns[best, :done]
        column = (residual[:, best] - columns[:, :done] @ past) / scale
        step = (effect[:, best] - steps[:, :done] @ past) / scale
        across = effect.T @ step - columns[:, :done] @ (steps[:, :done].T @ step)
        squares += column * (column * step.square().sum() - 2 * across)
        remaining -= column.square()
        columns[:, done], steps[:, done], open_[best] = column, step, False
        chosen.append(best)
    return torch.tensor(chosen), columns, steps
