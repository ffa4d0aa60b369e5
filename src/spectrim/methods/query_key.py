"""Queries and keys jointly: the dimensions of each head's scores that the loss misses.

A score qᵀ k stays what it is when q becomes T q and k becomes T⁻ᵀ k, so W_q, b_q and W_k, b_k may
be turned, head by head, and dimensions that count for little be left out (MoDeGPT, 2408.09632,
picks dimensions without turning them). To leave them out on both sides is to put P q in the place
of q, which costs ½ tr(G (I - P) C (I - P)ᵀ) with C = E[q qᵀ], the bias in it, and G the gradients
at q, in which are the keys that the loss looks at. Where rotary embeddings or a norm act between
W_q and the score, heads cannot be turned, and nothing is offered.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition, corner_losses
from spectrim.methods._heads import diagonal_blocks, on_both, turned, turned_rows
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics

ROLES = (("k", "q"), ("cross_k", "cross_q"))
FORMAT = {
    "q": "padded_outputs",
    "k": "padded_outputs",
    "cross_q": "padded_outputs",
    "cross_k": "padded_outputs",
}
CENTRED = False
NEEDS = ("head_dim", "biases", "unseen")


def query_key(
    weight: dict[str, Float[Tensor, "_ in"]],
    statistics: dict[str, Statistics],
    *,
    head_dim: int,
    biases: dict[str, Float[Tensor, " _"] | None],
    unseen: dict[str, Statistics] | None = None,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the cuts to so many key dimensions in all, from none to the outputs of k.

    weight, statistics and biases are by role, k first; head_dim: the dimensions of one head. ranks
    are of k; q keeps as many outputs, times the query heads that read one key head. unseen: by role
    too, what the losses are of, where not of what chooses the cuts.

    Raises:
        ValueError: the statistics of q hold no input moment or no gradient moment, or q has a bias
            and they no input mean.
    """
    (key, keys), (query, queries) = ((role, one.double()) for role, one in weight.items())
    known, damping = statistics[query], damping or Damping()
    outputs, gradients = _moments(queries, biases[query], known, damping)
    times = len(queries) // len(keys)
    found = turned(*(diagonal_blocks(one, head_dim, times) for one in (outputs, gradients)))
    turn, back = (one.repeat_interleave(times, 0) for one in (found.turn, found.back))
    places = found.places(times)
    if unseen is not None:
        known = unseen[query]
        outputs, gradients = _moments(queries, biases[query], known, damping)
    gram = (on_both(turn, outputs) * on_both(back.mT, gradients))[places][:, places]
    losses = corner_losses(gram)[::times].float()
    if not outputs.any() or known.gradient_moment is None or not known.gradient_moment.any():
        losses = torch.zeros_like(losses)  # nothing reaches the loss
    pieces = turned_rows(query, queries, turn, places)
    pieces |= turned_rows(key, keys, found.back.mT, found.order)
    return Decomposition(torch.arange(len(keys) + 1), losses, pieces, in_nats=True)


def _moments(
    rows: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    known: Statistics,
    damping: Damping,
) -> tuple[Float[Tensor, "out out"], Float[Tensor, "out out"]]:
    """Return E[q qᵀ] of q = W x + b, and G, both damped."""
    if known.gradient_moment is None:
        raise ValueError("query_key needs the gradient moment of the queries")
    gradients = damped(known.gradient_moment, damping.gradient)
    return _outputs(rows, bias, known, damping), gradients


def _outputs(
    rows: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    known: Statistics,
    damping: Damping,
) -> Float[Tensor, "out out"]:
    if known.input_moment is None:
        raise ValueError("query_key needs the input moment of the queries")
    moment = rows @ damped(known.input_moment, damping.input) @ rows.T
    if bias is None:
        return moment
    if known.input_mean is None:
        raise ValueError("query_key needs the input mean of queries that have a bias")
    shift = bias.double()
    crossed = torch.outer(rows @ known.input_mean.double(), shift)
    return moment + crossed + crossed.T + torch.outer(shift, shift)
