"""A narrower MLP: some intermediate neurons, by which the others are made up for (CUR, Nyström).

With h the intermediate activations, A = E[h hᵀ] and S the neurons kept, least squares make h from
h_S by A[:, S] A[S, S]⁻¹, so the down map becomes W A[:, S] A[S, S]⁻¹ and gate and up keep their
rows S (MoDeGPT, 2408.09632, section 3.2). MoDeGPT draws S anew for each width by ridge leverage
scores; here one order, that of a pivoted Cholesky factorisation, holds the neurons of every width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from spectrim.methods import Decomposition, tail_losses
from spectrim.walk.moments import Damping, cholesky, damped
from spectrim.walk.statistics import Statistics

ROLES = ("gate?", "up", "down")
FORMAT = {"gate": "fewer_outputs", "up": "fewer_outputs", "down": "fewer_inputs"}
CENTRED = False

Ordering = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The down map, A and G, both damped → every neuron once, the most important first."""


def neuron_selection(
    weight: dict[str, Tensor],
    statistics: dict[str, Statistics],
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the widths of an MLP, its neurons ordered by the activations alone (G = I).

    Raises:
        ValueError: the down map's statistics hold no input moment or no gradient moment.
    """
    return narrowed(weight, statistics, damping or Damping(), _by_residual)


def narrowed(
    maps: dict[str, Tensor],
    statistics: dict[str, Statistics],
    damping: Damping,
    ordering: Ordering,
) -> Decomposition:
    """Return the widths 0 … n of an MLP of n neurons, the first k of an order kept at width k.

    With L the Cholesky factor of A in that order, what width k misses is W L without its first k
    columns, so that the losses ½ tr(Δᵀ G Δ A) of all widths are tails of one sum.

    Raises:
        ValueError: the down map's statistics hold no input moment or no gradient moment.
    """
    known = statistics["down"]
    seen = known.loss_inputs
    if seen is None or known.gradient_moment is None:
        raise ValueError("neuron selection needs the down map's input and gradient moments")
    inputs = damped(seen, damping.input)
    gradients = damped(known.gradient_moment, damping.gradient)
    order = ordering(maps["down"].double(), inputs, gradients)
    columns = maps["down"][:, order]
    root, losses = made_up(columns.double(), inputs[order][:, order], gradients)
    if not seen.any() or not known.gradient_moment.any():
        losses = torch.zeros_like(losses)  # nothing reaches the loss
    pieces = {"down.columns": columns, "down.root": root.float(), "down.order": order}
    for role in maps.keys() - {"down"}:
        pieces |= {f"{role}.rows": maps[role][order], f"{role}.order": order.clone()}
    return Decomposition(torch.arange(len(losses)), losses, pieces, in_nats=True)


def made_up(
    columns: Float[Tensor, "out full"],
    inputs: Float[Tensor, "full full"],
    gradients: Float[Tensor, "out out"],
) -> tuple[Float[Tensor, "full full"], Float[Tensor, " cuts"]]:
    """Return the Cholesky factor of A, and what keeping the first 0 … full inputs costs.

    Those kept make up for the others by least squares; all is in float64, and the losses are in
    nats per token.
    """
    root = cholesky(inputs)
    weighted = cholesky(gradients).T @ (columns @ root)  # [out, full]
    return root, tail_losses(weighted.norm(dim=0), 0.5)


def _by_residual(
    down: Float[Tensor, "out neurons"],
    inputs: Float[Tensor, "neurons neurons"],
    gradients: Float[Tensor, "out out"],
) -> Int[Tensor, " neurons"]:
    """Return the order of the largest ‖W[:, j]‖² times what is left of A[j, j] at each step.

    That is the diagonal pivoting of a Cholesky factorisation of A scaled by the norms of W.
    """
    norms = down.norm(dim=0)
    scaled = inputs * torch.outer(norms, norms)
    _, pivots, _, _ = dpstrf(scaled.numpy(), lower=1)
    return torch.from_numpy(pivots).long() - 1
