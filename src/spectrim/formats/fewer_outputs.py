"""A matrix of fewer rows: the outputs that were kept, most important first."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats import FactoredLinear
from spectrim.kernels.maps import Parts
from spectrim.kernels.structures import Numbers


class FewerOutputs(FactoredLinear):
    """A linear map to ``rank`` of the outputs, rows [rank, in], for the maps before a narrower MLP.

    in_features and out_features are those of the dense map; this one maps [*, in] to [*, rank], so
    it fits only beside a map that takes as many inputs (fewer_inputs.py). ``bias`` is [rank].
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.rows = nn.Parameter(torch.empty(rank, in_features))

    def delivered(self) -> int:
        """Return how many outputs were kept."""
        return self.rank

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r n."""
        return rank * in_features

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the number of outputs."""
        return out_features

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the first ``rank`` of ``rows`` [out, in], which are sorted by importance."""
        self.rows.copy_(pieces["rows"][: self.rank])

    def take_bias(self, bias: Float[Tensor, " out"], pieces: dict[str, Tensor]) -> None:
        """Take the biases of the outputs that ``order`` [out] names first."""
        assert self.bias is not None
        self.bias.copy_(bias[pieces["order"][: self.rank]])

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch rank"]:
        """Return rows x."""
        return functional.linear(x, self.rows)

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(Numbers(self.rows))

    def dense(self) -> Float[Tensor, "rank in"]:
        """Return ``rows``."""
        return self.rows
