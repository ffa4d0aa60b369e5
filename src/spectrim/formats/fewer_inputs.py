"""A matrix of fewer columns: what the inputs that were kept stand for, the others among it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats import FactoredLinear
from spectrim.kernels.maps import Parts
from spectrim.kernels.structures import Numbers


class FewerInputs(FactoredLinear):
    """A linear map from ``rank`` of the inputs, columns [out, rank], behind a narrower MLP.

    in_features and out_features are those of the dense map; this one maps [*, rank] to [*, out].
    ``places`` [rank] (int32) says which inputs of the dense map these are, by which later stages
    know their moments.
    """

    places: Int[Tensor, " rank"]

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.columns = nn.Parameter(torch.empty(out_features, rank))
        self.register_buffer("places", torch.empty(rank, dtype=torch.int32))

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r m."""
        return rank * out_features

    @classmethod
    def bytes(cls, out_features: int, in_features: int, rank: int, dtype: torch.dtype) -> int:
        """Return the bytes of the numbers and of the int32 places."""
        return super().bytes(out_features, in_features, rank, dtype) + 4 * rank

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the number of inputs."""
        return in_features

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take W₁ + W₂ A₂₁ A₁₁⁻¹: the columns kept, and the others through their least squares.

        pieces: ``columns`` W = (W₁ W₂), sorted by importance, and ``root``, the lower Cholesky
        factor L of A in the same order, by which A₂₁ A₁₁⁻¹ = L₂₁ L₁₁⁻¹; ``order`` [in] itself.
        """
        kept, left = pieces["columns"].double().tensor_split([self.rank], dim=1)
        upper, lower = pieces["root"][:, : self.rank].double().tensor_split([self.rank])
        made_up = torch.linalg.solve_triangular(upper, left @ lower, upper=False, left=False)
        self.columns.copy_(kept + made_up)
        self.places.copy_(pieces["order"][: self.rank])

    def apply_factors(self, x: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch out"]:
        """Return columns x."""
        return functional.linear(x, self.columns)

    def parts(self) -> Parts | None:
        """Return what the kernels compute W x with."""
        return Parts(Numbers(self.columns))

    def dense(self) -> Float[Tensor, "out rank"]:
        """Return ``columns``."""
        return self.columns
