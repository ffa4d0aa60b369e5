"""An embedding that reads the packed table of another one, as encoders and decoders do."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from spectrim.formats._tied import Tied

STAGE = "quantize"


class TiedEmbedding(Tied):
    """Rows of another module's table; embed_scale: what they are multiplied by."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool,
        owner: str = "",
        *,
        embed_scale: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, owner)
        self.embed_scale = embed_scale
        self.num_embeddings, self.embedding_dim = out_features, in_features

    def forward(self, x: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch in"]:
        """Return the rows of some words."""
        return self.table.quantized.rows_at(x) * self.embed_scale

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), "embed_scale": self.embed_scale}
