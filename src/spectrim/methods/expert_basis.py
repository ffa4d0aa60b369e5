"""One basis for the gate and up maps of all experts of a block, which read the same hidden states.

Basis Sharing (2410.03765) over experts in place of blocks. Which tokens an expert reads is routed,
so A differs from one to the next: the basis is cut in the metric of the pooled A, and what a cut
costs is counted with every expert's own. Experts that no token reached are left out.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition, corner_losses
from spectrim.methods.shared_basis import common_basis
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics

ROLES = ("expert*_gate_up",)
FORMAT = {"first": "shared_owner", "others": "shared_follower"}


def expert_basis(
    weight: dict[str, Float[Tensor, "_ in"]],
    statistics: dict[str, Statistics],
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the cuts of the stack that minimise Σ_e ½ ‖G_e^½ (W_e - U_e V) A^½‖² over one V.

    weight and statistics are by role, the owner of the basis first. A = Σ t_e A_e / Σ t_e for t_e
    tokens routed to expert e; G_e is a mean over all tokens, so how often an expert is chosen is in
    it. losses are Σ_e ½ tr(Δ_eᵀ G_e Δ_e A_e), in nats per token; where one would rise with the
    rank, as U_e is best for A and not for A_e, the cuts before it are said to lose as much.

    Raises:
        ValueError: statistics hold no input moment or no gradient moment.
    """
    damping = damping or Damping()
    pooled = _pooled(list(statistics.values()))
    alike = {role: replace(one, input_moment=pooled) for role, one in statistics.items()}
    found = common_basis(weight, alike, damping, loss_aware=True)
    if not found.losses.any():  # nothing reaches the loss
        return found
    right = next(piece for name, piece in found.pieces.items() if name.endswith(".right")).double()
    gram = torch.zeros(len(right), len(right), dtype=torch.float64)
    for role, one in statistics.items():
        assert one.input_moment is not None and one.gradient_moment is not None
        if one.gradient_moment.any():  # else the loss ignores this expert
            left = found.pieces[f"{role}.left"].double()
            outputs = left.T @ damped(one.gradient_moment, damping.gradient) @ left
            inputs = right @ damped(one.input_moment, damping.input) @ right.T
            gram += outputs * inputs
    return replace(found, losses=corner_losses(gram).float())


def _pooled(statistics: list[Statistics]) -> Float[Tensor, "in in"]:
    """Return the mean of the experts' input moments, each weighted by its tokens."""
    known = [one.input_moment for one in statistics if one.input_moment is not None]
    if len(known) < len(statistics):
        raise ValueError("a basis of experts needs their input moments and gradient moments")
    tokens = torch.tensor([float(one.tokens) for one in statistics])
    return torch.einsum("e,eij->ij", tokens / tokens.sum(), torch.stack(known))
