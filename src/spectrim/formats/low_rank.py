"""Two factors: W = second @ first, r(m + n) numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats import TwoFactors
from spectrim.kernels.maps import Parts
from spectrim.kernels.structures import Numbers


class LowRank(TwoFactors):
    """W = second @ first with first [rank, in] and second [out, rank].

    The singular values are shared evenly by both factors, so that their entries are alike in size
    and bf16 rounds both alike. Below rank mn / (m + n) this stores less than the matrix.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.first = nn.Parameter(torch.empty(rank, in_features))
        self.second = nn.Parameter(torch.empty(out_features, rank))

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r(m + n)."""
        return rank * (out_features + in_features)

    def fill(self, left: Float[Tensor, "out rank"], right: Float[Tensor, "rank in"]) -> None:
        """Take W = left @ right, its singular values shared evenly between the factors."""
        basis_left, triangle_left = torch.linalg.qr(left)
        basis_right, triangle_right = torch.linalg.qr(right.T)
        u, sigma, vh = torch.linalg.svd(triangle_left @ triangle_right.T)
        root = sigma.sqrt()
        self.second.copy_((basis_left @ u) * root)  # [out, rank]
        self.first.copy_(root[:, None] * (vh @ basis_right.T))  # [rank, in]

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return second (first x)."""
        return functional.linear(functional.linear(x, self.first), self.second)

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(first=Numbers(self.first), second=Numbers(self.second))

    def left(self) -> Float[Tensor, "out rank"]:
        """Return ``second``."""
        return self.second

    def right(self) -> Float[Tensor, "rank in"]:
        """Return ``first``."""
        return self.first
