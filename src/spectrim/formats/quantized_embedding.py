"""An embedding table in a few bits, of which only the rows that are asked for are dequantised."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.packed.scales import Grid

STAGE = "quantize"


class QuantizedEmbedding(Quantized):
    """Rows of a packed table [out, in], out words of in numbers each.

    embed_scale: what the rows are multiplied by, as some families do.
    """

    quantized: PackedMatrix

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool,
        grid: Grid,
        embed_scale: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, grid)
        self.embed_scale = embed_scale
        self.num_embeddings, self.embedding_dim = out_features, in_features

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return that of the table."""
        return {"quantized": (out_features, in_features)}

    def forward(self, x: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch in"]:
        """Return the rows of some words."""
        return self.quantized.rows_at(x) * self.embed_scale

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the product of the table with hidden states, as a tied head wants it."""
        return self.quantized.product(x)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the table."""
        return self.quantized.dense()

    def multiply_adds(self) -> int:
        """Return 0: rows are looked up."""
        return 0

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), "embed_scale": self.embed_scale}
