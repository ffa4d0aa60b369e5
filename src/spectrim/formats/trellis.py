"""The matrix itself, its columns coded as paths through a trellis."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.formats import FactoredLinear
from spectrim.formats.packed.scales import Grid
from spectrim.formats.packed.trellis_matrix import TrellisMatrix
from spectrim.kernels.maps import Parts

STAGE = "quantize"


class Trellis(FactoredLinear):
    """W = diag(row_scale) codes diag(column_scale), the codes at ``rate`` / 16 bits a number.

    ``rank`` is min(out, in) and decides nothing.
    """

    matrix: TrellisMatrix
    rounded = True

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, trellis: int
    ) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.matrix = TrellisMatrix(out_features, in_features, trellis)

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return how many codes are stored."""
        return out_features * in_features

    @classmethod
    def stored_bytes(
        cls, shape: tuple[int, int, int], grid: Grid, dtype: torch.dtype, correction: int = 0
    ) -> int:
        """Return the bytes on disk, the bias apart; dtype: of the scales."""
        return TrellisMatrix.stored_bytes(shape[:2], grid.trellis, dtype)

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take codes and scales."""
        self.matrix.take(pieces)

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return W x."""
        return self.matrix.product(x)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the matrix that the codes stand for."""
        return self.matrix.dense()

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(self.matrix.part(), input_scale=self.matrix.column_scale)

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), "trellis": self.matrix.rate}

    def extra_repr(self) -> str:
        """Return shape and rate for ``print(model)``."""
        return f"{super().extra_repr()}, {self.matrix.rate / 16:g} bits"
