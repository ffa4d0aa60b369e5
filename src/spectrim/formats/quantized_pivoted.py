"""Pivot rows and the coefficients of the others in a few bits, r(m + n - r) packed numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.packed.scales import Grid
from spectrim.kernels.maps import Parts

STAGE = "quantize"


class QuantizedPivoted(Quantized):
    """W of rank r as r rows and coefficients of the other rows in them, both packed.

    As in `Pivoted`: rows [rank, in], coefficients [out - rank, rank], and ``order`` [out] (int32)
    says where each output stands in (pivot rows, other rows).
    """

    rows: PackedMatrix
    coefficients: PackedMatrix
    order: Int[Tensor, " out"]

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, grid: Grid
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, grid)
        self.register_buffer("order", torch.empty(out_features, dtype=torch.int32))

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return those of the rows and of the coefficients."""
        return {"rows": (rank, in_features), "coefficients": (out_features - rank, rank)}

    @classmethod
    def stored_bytes(
        cls, shape: tuple[int, int, int], grid: Grid, dtype: torch.dtype, correction: int = 0
    ) -> int:
        """Return the bytes of the packed matrices and of the int32 order."""
        return super().stored_bytes(shape, grid, dtype, correction) + 4 * shape[0]

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the pivot outputs and the others made from them, in the order of W's rows."""
        pivot = self.rows.product(x)  # [*batch, rank]
        both = torch.cat((pivot, self.coefficients.product(pivot)), dim=-1)
        return both.gather(-1, self.order.long().expand(both.shape))

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(first=self.rows.part(), second=self.coefficients.part(), order=self.order)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the pivot rows and the others made from them, in order."""
        rows = self.rows.dense()
        return torch.cat((rows, self.coefficients.dense() @ rows)).index_select(0, self.order)
