"""Heads of attention in coordinates of their own: turned, so that few of a head's count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.walk.moments import cholesky


@dataclass(frozen=True)
class Turned:
    """How the dimensions of every key-value head are turned, and which of them matter most.

    turn [heads, dim, dim] is what the map before attention is multiplied with from the left, and
    back, its inverse, what undoes it behind. order [heads x dim]: the turned dimensions of all
    heads, the most important first.
    """

    turn: Float[Tensor, "heads dim dim"]
    back: Float[Tensor, "heads dim dim"]
    order: Int[Tensor, " all"]

    def places(self, times: int) -> Int[Tensor, " places"]:
        """Return where the dimensions in order lie in a map of ``times`` as many heads.

        Each key-value head is read by so many query heads in a row.
        """
        dim = self.turn.shape[1]
        heads = times * (self.order // dim)[:, None] + torch.arange(times)
        return (dim * heads + (self.order % dim)[:, None]).flatten()


def turned(
    inputs: Float[Tensor, "heads dim dim"], outputs: Float[Tensor, "heads dim dim"]
) -> Turned:
    """Return the turns whose first r dimensions minimise tr(outputs (I - P) inputs (I - P)ᵀ).

    P = back[:, :r] turn[:r]. With inputs = S Sᵀ and V the eigenvectors of Sᵀ outputs S, turn is
    Vᵀ S⁻¹ and back S V, and each dimension is worth its eigenvalue, across all heads.
    """
    roots = torch.stack([cholesky(one) for one in inputs])
    worth, vectors = torch.linalg.eigh(roots.mT @ outputs @ roots)
    worth, vectors = worth.flip(1), vectors.flip(2)
    turn = torch.linalg.solve_triangular(roots, vectors.mT, upper=False, left=False)
    order = worth.flatten().argsort(descending=True, stable=True)
    return Turned(turn, roots @ vectors, order)


def on_heads(
    turn: Float[Tensor, "heads dim dim"], rows: Float[Tensor, "all rest"]
) -> Float[Tensor, "all rest"]:
    """Return the rows of every head multiplied with its turn."""
    parts: Tensor = rows.unflatten(0, (len(turn), -1))
    return (turn @ parts).flatten(0, 1)


def on_both(
    turn: Float[Tensor, "heads dim dim"], moment: Float[Tensor, "all all"]
) -> Float[Tensor, "all all"]:
    """Return T M Tᵀ for a symmetric M, T having the turns on its diagonal."""
    return on_heads(turn, on_heads(turn, moment).T)


def diagonal_blocks(
    moment: Float[Tensor, "all all"], dim: int, times: int
) -> Float[Tensor, "heads dim dim"]:
    """Return the mean of the blocks on the diagonal over the query heads of a key-value head."""
    blocks: Tensor = moment.unflatten(1, (-1, dim)).unflatten(0, (-1, dim))
    by_key: Tensor = torch.einsum("hihj->hij", blocks).unflatten(0, (-1, times))
    return by_key.mean(1)


def turned_rows(
    role: str,
    rows: Float[Tensor, "all in"],
    turn: Float[Tensor, "heads dim dim"],
    order: Int[Tensor, " all"],
) -> dict[str, Tensor]:
    """Return the pieces of a map before attention: turned rows by importance, and their places.

    ``turn`` [all, dim] goes with the rows, for the bias.
    """
    return {
        f"{role}.rows": on_heads(turn, rows)[order].float(),
        f"{role}.turn": turn.flatten(0, 1)[order].float(),
        f"{role}.order": order.clone(),
    }
