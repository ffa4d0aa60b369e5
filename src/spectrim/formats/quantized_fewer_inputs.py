"""The columns that were kept in a few bits, r m packed numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.formats._packed import PackedMatrix
from spectrim.formats._quantized import Quantized
from spectrim.formats._rounding import Grid

STAGE = "quantize"


class QuantizedFewerInputs(Quantized):
    """As `FewerInputs`, a map from [*, rank] to [*, out], its columns [out, rank] packed.

    ``places`` [rank] (int32) says which inputs of the dense map these are.
    """

    columns: PackedMatrix
    places: Int[Tensor, " rank"]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool,
        *,
        bits: int,
        group: int,
        symmetric: bool,
    ) -> None:
        super().__init__(
            in_features, out_features, rank, bias, bits=bits, group=group, symmetric=symmetric
        )
        self.register_buffer("places", torch.empty(rank, dtype=torch.int32))

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the number of inputs."""
        return in_features

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return that of the columns."""
        return {"columns": (out_features, rank)}

    @classmethod
    def stored_bytes(
        cls, shape: tuple[int, int, int], grid: Grid, dtype: torch.dtype, correction: int = 0
    ) -> int:
        """Return the bytes of the packed columns and of the int32 places."""
        return super().stored_bytes(shape, grid, dtype, correction) + 4 * shape[2]

    def apply_factors(self, x: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch out"]:
        """Return columns x."""
        return self.columns.product(x)

    def dense(self) -> Float[Tensor, "out rank"]:
        """Return the columns."""
        return self.columns.dense()
