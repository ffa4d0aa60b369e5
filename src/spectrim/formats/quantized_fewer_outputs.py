"""The rows that were kept in a few bits, r n packed numbers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.kernels.maps import Parts

STAGE = "quantize"


class QuantizedFewerOutputs(Quantized):
    """As `FewerOutputs`, a map from [*, in] to [*, rank], its rows [rank, in] packed."""

    rows: PackedMatrix

    def delivered(self) -> int:
        """Return how many outputs were kept."""
        return self.rank

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

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(self.rows.part())

    def dense(self) -> Float[Tensor, "rank in"]:
        """Return the rows."""
        return self.rows.dense()
