"""A bottleneck with a bend: y = decoder σ(encoder x + offset), r(m + n + 2) numbers."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear

PARTS = ("encoder", "offset", "slope", "decoder")


class Autoencoder(FactoredLinear):
    """Encoder [rank, in], decoder [out, rank], and a bend a unit: σ(z) = z above 0, slope z below.

    With every slope 1 it is linear (PReLU; He et al., 1502.01852), so a product of two factors is
    the special case that training starts from. Such a unit stands for no matrix.
    """

    stepped: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.encoder = nn.Parameter(torch.empty(rank, in_features))
        self.offset = nn.Parameter(torch.empty(rank))
        self.slope = nn.Parameter(torch.empty(rank))
        self.decoder = nn.Parameter(torch.empty(out_features, rank))

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r(m + n + 2)."""
        return rank * (out_features + in_features + 2)

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the autoencoder that was trained at this rank.

        Raises:
            SpectrimError: none was.
        """
        made = sorted({int(key.partition(".")[0]) for key in pieces})
        if self.rank not in made:
            raise SpectrimError(
                f"an autoencoder of rank {self.rank} is asked for, but those that were trained "
                f"have {', '.join(map(str, made))}; change the rank in the plan to one of these"
            )
        for part in PARTS:
            getattr(self, part).copy_(pieces[f"{self.rank}.{part}"])

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return decoder σ(encoder x + offset)."""
        hidden = functional.linear(x, self.encoder, self.offset)
        bent = torch.where(hidden > 0, hidden, self.slope * hidden)
        return functional.linear(bent, self.decoder)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return decoder @ encoder, the matrix that it would stand for without bend and offset."""
        return self.decoder @ self.encoder
