"""Ways to decompose one map: each decomposes once and offers a curve of sizes against losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.registry import Registry

methods = Registry("method", "spectrim.methods")


@dataclass(frozen=True)
class Damping:
    """How far moments are shrunk towards a multiple of the identity before they are factored.

    ``input`` and ``gradient`` are parts of the mean diagonal of A and G that are added to it;
    0 leaves them as measured.
    """

    input: float = 1e-4
    gradient: float = 1e-2


@dataclass(frozen=True)
class Decomposition:
    """W = left @ right, its components sorted by importance, so that every cut is a slice.

    left [out, full] and right [full, in] are float32; values [full] are the singular values of the
    method's own weighting; losses [full + 1] are the predicted increase of the model's loss in
    nats per token when only the first r components stay, r = 0 … full. A method that knows nothing
    of the loss states its own error, says ``in_nats`` False, and has it converted (currency.py).
    """

    left: Float[Tensor, "out full"]
    right: Float[Tensor, "full in"]
    values: Float[Tensor, " full"]
    losses: Float[Tensor, " cuts"]
    in_nats: bool = False

    def cut(self, rank: int) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
        """Return contiguous copies of the first ``rank`` components."""
        return self.left[:, :rank].contiguous(), self.right[:rank].contiguous()


def tail_losses(values: Float[Tensor, " full"], scale: float) -> Float[Tensor, " cuts"]:
    """Return scale x the sum of the squared values behind each cut, from rank 0 to full."""
    squared = values.double().square().flip(0)
    tails = torch.cat((squared.new_zeros(1), squared.cumsum(0))).flip(0)
    return (scale * tails).float()


def damped(moment: Float[Tensor, "dim dim"], damping: float) -> Float[Tensor, "dim dim"]:
    """Return moment + damping x mean diagonal x identity in float64; a moment of zeros is neutral.

    Zeros (a dead input, a map that the loss ignores) become the identity, so that it factors.
    """
    moment = moment.double()
    mean = moment.diagonal().mean()
    if mean == 0:
        return torch.eye(len(moment), dtype=torch.float64)
    return moment + damping * mean * torch.eye(len(moment), dtype=torch.float64)


def cholesky(moment: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Return the lower Cholesky factor of a moment.

    One that is singular (fewer tokens than dimensions, dead neurons) is damped tenfold more, from
    1e-12 of its mean diagonal on, until it factors.

    Raises:
        ArithmeticError: the matrix is far from positive semidefinite.
    """
    shift = 0.0
    mean = float(moment.diagonal().mean())
    while shift < 1.0:
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(
            moment + shift * mean * torch.eye(len(moment), dtype=moment.dtype)
        )
        if not failed:
            return root
        shift = max(10 * shift, 1e-12)
    raise ArithmeticError("a second moment is not positive semidefinite")
