"""Two factors in a few bits: W = second @ first, r(m + n) packed numbers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.kernels.maps import Parts

STAGE = "quantize"


class QuantizedLowRank(Quantized):
    """W = second @ first with first [rank, in] and second [out, rank], both packed."""

    first: PackedMatrix
    second: PackedMatrix

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return those of the factors."""
        return {"first": (rank, in_features), "second": (out_features, rank)}

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return second (first x)."""
        return self.second.product(self.first.product(x))

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(first=self.first.part(), second=self.second.part())

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the product of the factors."""
        return self.second.dense() @ self.first.dense()
