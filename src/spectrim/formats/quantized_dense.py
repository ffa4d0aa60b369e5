"""The matrix itself in a few bits, with or without two factors that make up for the rounding."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.packed.scales import Grid
from spectrim.kernels.maps import Parts
from spectrim.kernels.structures import Numbers

STAGE = "quantize"


class QuantizedDense(Quantized):
    """W = Q, or Q + second @ first with first [correction, in] and second [out, correction].

    Q is packed, the two factors are in the checkpoint's dtype (LQER 2402.02446, EoRA 2410.21271).
    ``rank`` is min(out, in) and decides nothing.
    """

    quantized: PackedMatrix
    first: nn.Parameter | None
    second: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool,
        grid: Grid,
        correction: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, grid)
        self.correction = correction
        self.first = self.second = None
        if correction:
            self.first = nn.Parameter(torch.empty(correction, in_features))
            self.second = nn.Parameter(torch.empty(out_features, correction))

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return that of the matrix."""
        return {"quantized": (out_features, in_features)}

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return Q x + second (first x)."""
        y = self.quantized.product(x)
        if self.first is None or self.second is None:
            return y
        return y + functional.linear(functional.linear(x, self.first), self.second)

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        if self.first is None or self.second is None:
            return Parts(self.quantized.part())
        return Parts(self.quantized.part(), Numbers(self.first), Numbers(self.second))

    def dense(self) -> Float[Tensor, "out in"]:
        """Return Q + second @ first."""
        whole = self.quantized.dense()
        if self.first is None or self.second is None:
            return whole
        return whole + self.second @ self.first

    def stored(self) -> int:
        """Return the numbers of Q and of the two factors."""
        return super().stored() + self.correction * (self.in_features + self.out_features)

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), "correction": self.correction}
