"""Values and outputs of attention jointly: the value dimensions of each head that the loss misses.

A head hands on c = Σ_t a_t (W_v x_t + b), and a T that multiplies its values multiplies c: W_v may
become T W_v, b become T b and the head's part of W_o become W_o T⁻¹, whatever the attention does,
and rows of T that count for little are left out (MoDeGPT, 2408.09632). MoDeGPT cuts the SVD of
W_o W_v A_v^½ per head; here the sides are weighed by E[c cᵀ] and the gradients as they are measured
at o, heads compete for the dimensions that stay, and what stays makes up for the rest by least
squares, as neurons do. Where E[c cᵀ] is W_v A_v W_vᵀ, as of tokens that attend to themselves
alone, one head is cut as the SVD of G^½ W_o W_v A_v^½ cuts it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.methods._heads import diagonal_blocks, on_both, on_heads, turned, turned_rows
from spectrim.methods.neuron_selection import made_up
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics

ROLES = (("v", "o"), ("cross_v", "cross_o"))
FORMAT = {
    "v": "padded_outputs",
    "o": "picked_inputs",
    "cross_v": "padded_outputs",
    "cross_o": "picked_inputs",
}
CENTRED = False
NEEDS = ("head_dim",)


def value_output(
    weight: dict[str, Float[Tensor, "_ _"]],
    statistics: dict[str, Statistics],
    *,
    head_dim: int,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the cuts to so many value dimensions in all, from none to the outputs of v.

    weight and statistics are by role, v first; head_dim: the value dimensions of one head. ranks
    are of v; o keeps as many inputs, times the query heads that read one value head.

    Raises:
        ValueError: the statistics of o hold no input moment or no gradient moment.
    """
    (value, rows), (out, columns) = ((role, one.double()) for role, one in weight.items())
    known, damping = statistics[out], damping or Damping()
    if known.input_moment is None or known.gradient_moment is None:
        raise ValueError("value_output needs the input and gradient moments of the output map")
    inputs = damped(known.input_moment, damping.input)
    gradients = damped(known.gradient_moment, damping.gradient)
    times = columns.shape[1] // len(rows)
    across = columns.T @ gradients @ columns  # of a head's query heads, together as in `inputs`
    found = turned(*(diagonal_blocks(one, head_dim, times) for one in (inputs, times * across)))
    places = found.places(times)
    turn, back = (one.repeat_interleave(times, 0) for one in (found.turn, found.back))
    columns = on_heads(back.mT, columns.T).T[:, places]
    root, losses = made_up(columns, on_both(turn, inputs)[places][:, places], gradients)
    if not known.input_moment.any() or not known.gradient_moment.any():
        losses = torch.zeros_like(losses)  # nothing reaches the loss
    pieces = {
        **turned_rows(value, rows, found.turn, found.order),
        f"{out}.columns": columns.float(),
        f"{out}.root": root.float(),
        f"{out}.order": places,
    }
    return Decomposition(torch.arange(len(rows) + 1), losses[::times], pieces, in_nats=True)
