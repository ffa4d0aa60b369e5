"""Two factors of signs with a scale for every output, every rank and every input.

W = diag(a) S diag(b) Tᵀ diag(c), S [out, rank] and T [in, rank] of -1 and 1: r(m + n) bits and
m + n + r scales (LittleBit 2506.13771, NanoQuant). The rank may be larger than the matrix has: a
square matrix of two bits a weight has factors of its own width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.packed.scales import Grid
from spectrim.kernels.maps import Parts

STAGE = "quantize"
SIGNS = Grid(bits=1, group=0, symmetric=True)


class BinaryLowRank(Quantized):
    """W = second @ first @ diag(input_scale), first = diag(b) Tᵀ and second = diag(a) S packed.

    input_scale: [in], c; a parameter in the checkpoint's dtype, as the row scales a and b are.
    """

    first: PackedMatrix
    second: PackedMatrix

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, grid: Grid = SIGNS
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, grid)
        self.input_scale = nn.Parameter(torch.empty(in_features))

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return those of the factors."""
        return {"first": (rank, in_features), "second": (out_features, rank)}

    @classmethod
    def stored_bytes(
        cls, shape: tuple[int, int, int], grid: Grid, dtype: torch.dtype, correction: int = 0
    ) -> int:
        """Return the bytes on disk, those of the input scales included, the bias apart."""
        return super().stored_bytes(shape, grid, dtype, correction) + shape[1] * dtype.itemsize

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the rank from which on the signs alone take three bits a weight."""
        return 3 * out_features * in_features // (out_features + in_features)

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return second (first (c x))."""
        return self.second.product(self.first.product(x * self.input_scale))

    def parts(self) -> Parts:
        """Return what the kernels compute second (first (c x)) with."""
        first, second = self.first.part(), self.second.part()
        return Parts(first=first, second=second, input_scale=self.input_scale)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the product of the factors, rounded once."""
        return self.product().to(self.input_scale.dtype)

    def product(self) -> Float[Tensor, "out in"]:
        """Return the product of the factors in float32."""
        first = self.first.dense().float() * self.input_scale.float()
        return self.second.dense().float() @ first
