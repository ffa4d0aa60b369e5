"""The columns that were kept in a few bits, r m packed numbers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.kernels.maps import Parts

STAGE = "quantize"


class QuantizedFewerInputs(Quantized):
    """As `FewerInputs`, a map from [*, rank] to [*, out], its columns [out, rank] packed."""

    columns: PackedMatrix

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the number of inputs."""
        return in_features

    @classmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return that of the columns."""
        return {"columns": (out_features, rank)}

    def apply_factors(self, x: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch out"]:
        """Return columns x."""
        return self.columns.product(x)

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(self.columns.part())

    def dense(self) -> Float[Tensor, "out rank"]:
        """Return the columns."""
        return self.columns.dense()
