"""Pivot rows and the coefficients of the others: the same rank-r matrix in r(m + n - r) numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.linalg import qr, solve_triangular
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats import TwoFactors
from spectrim.kernels.maps import Parts
from spectrim.kernels.structures import Numbers


class Pivoted(TwoFactors):
    """W of rank r as r of its own rows and what the other rows are made of (PIFA, 2501.19090).

    rows [rank, in] are rows of W; coefficients [out - rank, rank] express the remaining rows in
    them. ``order`` [out] (int32) says where each output stands in (pivot rows, other rows).
    Lossless up to rounding, and smaller than the matrix at every rank below full: no break-even.
    """

    order: Int[Tensor, " out"]

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.rows = nn.Parameter(torch.empty(rank, in_features))
        self.coefficients = nn.Parameter(torch.empty(out_features - rank, rank))
        self.register_buffer("order", torch.empty(out_features, dtype=torch.int32))

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r(m + n - r)."""
        return rank * (out_features + in_features - rank)

    @classmethod
    def bytes(cls, out_features: int, in_features: int, rank: int, dtype: torch.dtype) -> int:
        """Return the bytes of the numbers and of the int32 order."""
        return super().bytes(out_features, in_features, rank, dtype) + 4 * out_features

    def fill(self, left: Float[Tensor, "out rank"], right: Float[Tensor, "rank in"]) -> None:
        """Take W = left @ right, its pivot rows chosen by QR with column pivoting on leftᵀ.

        Pivoting on the orthonormalised left factor keeps the coefficients small, whatever the
        scale of its columns.
        """
        left = left.to(torch.promote_types(self.rows.dtype, torch.float32))  # LAPACK has no half
        right = right.to(left.dtype)
        basis = torch.linalg.qr(left).Q  # [out, rank]
        triangle, permutation = qr(basis.T.numpy(), mode="r", pivoting=True)
        solved = solve_triangular(triangle[:, : self.rank], triangle[:, self.rank :])
        pivots = torch.from_numpy(permutation).long()
        self.rows.copy_(left[pivots[: self.rank]] @ right)
        self.coefficients.copy_(torch.from_numpy(solved).T)
        self.order.copy_(pivots.argsort())

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the pivot outputs and the others made from them, in the order of W's rows."""
        pivot = functional.linear(x, self.rows)  # [*batch, rank]
        both = torch.cat((pivot, functional.linear(pivot, self.coefficients)), dim=-1)
        # On a processor index_select takes more than twice as long as gather.
        return both.gather(-1, self.order.long().expand(both.shape))

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(first=Numbers(self.rows), second=Numbers(self.coefficients), order=self.order)

    def left(self) -> Float[Tensor, "out rank"]:
        """Return identity rows for the pivots and ``coefficients`` for the others, in order."""
        identity = torch.eye(
            self.rank, dtype=self.coefficients.dtype, device=self.coefficients.device
        )
        return torch.cat((identity, self.coefficients)).index_select(0, self.order)

    def right(self) -> Float[Tensor, "rank in"]:
        """Return ``rows``."""
        return self.rows
