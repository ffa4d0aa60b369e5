"""The first of several maps with one input: its coefficients, and the basis that all of them read.

Maps of m_1, m_2, … outputs that share a basis of rank r store r(m_1 + m_2 + … + n) numbers.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats import FactoredLinear


class SharedOwner(FactoredLinear):
    """W = coefficients @ basis with basis [rank, in], its rows orthonormal when cut.

    The others are `SharedFollower`; their ranks are the same. Orthonormal rows leave coefficients
    no larger than the matrix, so nothing large cancels, and bf16 rounds both factors well.
    """

    leads: ClassVar[bool] = True

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.basis = nn.Parameter(torch.empty(rank, in_features))
        self.coefficients = nn.Parameter(torch.empty(out_features, rank))

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r(m + n)."""
        return rank * (out_features + in_features)

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return n, as the maps together may have more outputs than each."""
        return in_features

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the first ``rank`` columns of ``left`` and rows of ``right``."""
        rows, triangle = orthonormal(pieces["right"], self.rank)
        self.basis.copy_(rows)
        self.coefficients.copy_(pieces["left"][:, : self.rank].double() @ triangle)

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return coefficients (basis x)."""
        return functional.linear(functional.linear(x, self.basis), self.coefficients)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the product of the factors."""
        return self.coefficients @ self.basis


def orthonormal(
    right: Float[Tensor, "full in"], rank: int
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "rank rank"]]:
    """Return orthonormal rows and a triangle, whose product triangle @ rows is right[:rank]."""
    columns, triangle = torch.linalg.qr(right[:rank].double().T)
    return columns.T, triangle.T
