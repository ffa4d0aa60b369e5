"""What attention makes of heads that were turned and narrowed, in the plainest way."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.formats import FactoredLinear
from spectrim.formats.picked_inputs import PickedInputs

HEAD_DIM = 4


def through_heads(
    module: FactoredLinear,
    other: FactoredLinear,
    dense: Float[Tensor, "_ in"],
    x: Float[Tensor, "tokens in"],
) -> Float[Tensor, "tokens out"]:
    """Return what o makes of x, or what a score takes the query of x for, the bias apart.

    other: what stands for v, or for k, whose matrix was ``dense``.
    """
    rows = [one.double().unflatten(0, (-1, HEAD_DIM)) for one in (other.dense(), dense)]
    turn = rows[0] @ torch.linalg.pinv(rows[1])  # what every head of it was multiplied with
    if isinstance(module, PickedInputs):
        return _on_heads(turn, x) @ module.dense().T
    return _on_heads(turn.mT, x @ module.dense().T)  # (T k)ᵀ q' = kᵀ (Tᵀ q')


def _on_heads(turn: Float[Tensor, "heads d d"], x: Float[Tensor, "tokens all"]) -> Tensor:
    heads = x.unflatten(1, (-1, HEAD_DIM))
    turn = turn.repeat_interleave(heads.shape[1] // len(turn), 0)
    return torch.einsum("hij,bhj->bhi", turn, heads).flatten(1)
