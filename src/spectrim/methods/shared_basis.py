"""One basis for the maps of a block that read the same input: q, k, v; gate, up; cross k, v.

Basis Sharing (2410.03765) stacks matrices along their outputs and cuts the stack [W_1; W_2; …] S,
A = S Sᵀ, so that one right basis serves them all. Maps with one input share A exactly, and a basis
of rank r is stored once: r(m_1 + m_2 + … + n) numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.methods.loss_aware_svd import two_sided_svd
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics

ROLES = (("q", "k", "v"), ("gate", "up"), ("cross_k", "cross_v"))
FORMAT = {
    "q": "shared_owner",
    "k": "shared_follower",
    "v": "shared_follower",
    "gate": "shared_owner",
    "up": "shared_follower",
    "cross_k": "shared_owner",
    "cross_v": "shared_follower",
}


def shared_basis(
    weight: dict[str, Float[Tensor, "_ in"]],
    statistics: dict[str, Statistics],
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the cuts of the stack that minimise Σ_s ‖(W_s - U_s V) A^½‖² over one V [rank, in].

    weight and statistics are by role, the owner of the basis first; their inputs are one. losses
    are the whole group's, in nats per token.

    Raises:
        ValueError: statistics hold no input moment or no gradient moment.
    """
    return common_basis(weight, statistics, damping or Damping(), loss_aware=False)


def common_basis(
    weight: dict[str, Float[Tensor, "_ in"]],
    statistics: dict[str, Statistics],
    damping: Damping,
    *,
    loss_aware: bool,
) -> Decomposition:
    """Return the cuts of the stack in the metric of A, and where loss-aware of every map's G_s.

    Components are orthogonal under A, so a cut costs ½ Σ_s (u_sᵀ G_s u_s)(v A vᵀ), summed over the
    components u v that it leaves out.
    """
    roles = list(weight)
    moment = statistics[roles[0]].input_moment
    flows = [statistics[role].gradient_moment for role in roles]
    known = [flow for flow in flows if flow is not None]
    if moment is None or len(known) < len(flows):
        raise ValueError("a shared basis needs the input moment and the gradient moments")
    inputs = damped(moment, damping.input)
    outputs = _blocks(known, damping.gradient)
    stack = torch.cat([weight[role] for role in roles])  # [all outputs, in]
    found = two_sided_svd(stack, inputs, outputs if loss_aware else None)
    lefts = found.left.split([len(weight[role]) for role in roles])
    costs = torch.zeros(len(found.right), dtype=torch.float64)
    for left, output in zip(lefts, outputs, strict=True):
        costs += ((output @ left.double()) * left).sum(0)
    costs *= ((found.right.double() @ inputs) * found.right).sum(1)
    tails = torch.cat((costs.flip(0).cumsum(0).flip(0), costs.new_zeros(1)))
    pieces = {f"{role}.left": left.contiguous() for role, left in zip(roles, lefts, strict=True)}
    pieces[f"{roles[0]}.right"] = found.right
    reached = moment.any() and any(bool(flow.any()) for flow in known)
    losses = (0.5 * tails if reached else 0 * tails).float()
    return Decomposition(found.ranks, losses, pieces, found.values, in_nats=True)


def _blocks(flows: list[Float[Tensor, "_ _"]], damping: float) -> list[Float[Tensor, "_ _"]]:
    """Return every map's damped gradient moment [out, out]; of a map that the loss ignores, zeros.

    Where it ignores them all, identities, as they have to be cut somehow.
    """
    known = any(bool(flow.any()) for flow in flows)
    return [
        damped(flow, damping) if flow.any() or not known else torch.zeros_like(flow).double()
        for flow in flows
    ]
