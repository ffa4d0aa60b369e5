"""The rows that were kept in a few bits, r n packed numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.formats._packed import PackedMatrix
from spectrim.formats._quantized import Quantized

STAGE = "quantize"


class QuantizedFewerOutputs(Quantized):
    """As `FewerOutputs`, a map from [*, in] to [*, rank], its rows [rank, in] packed."""

    rows: PackedMatrix

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
        if bias:
            self.bias = nn.Parameter(torch.empty(rank))

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the number of outputs."""
        return out_features

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return that of the rows."""
        return {"rows": (rank, in_features)}

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch rank"]:
        """Return rows x."""
        return self.rows.product(x)

    def dense(self) -> Float[Tensor, "rank in"]:
        """Return the rows."""
        return self.rows.dense()
