"""A matrix of some columns, which reads their inputs from among all."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from spectrim.formats.fewer_inputs import FewerInputs


class PickedInputs(FewerInputs):
    """A linear map from all inputs that reads ``rank`` of them, columns [out, rank].

    ``places`` [rank] (int32) says which; it stands behind a map that leaves the others at zero
    (padded_outputs.py).
    """

    places: Int[Tensor, " rank"]

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.register_buffer("places", torch.empty(rank, dtype=torch.int32))

    @classmethod
    def bytes(cls, out_features: int, in_features: int, rank: int, dtype: torch.dtype) -> int:
        """Return the bytes of the numbers and of the int32 places."""
        return super().bytes(out_features, in_features, rank, dtype) + 4 * rank

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the columns as fewer_inputs does, and of ``order`` [in] their places."""
        super().take(pieces)
        self.places.copy_(pieces["order"][: self.rank])

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return columns x, x at the places."""
        places = self.places.long().expand(*x.shape[:-1], self.rank)
        return functional.linear(x.gather(-1, places), self.columns)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return ``columns`` at their places, zeros elsewhere."""
        whole = self.columns.new_zeros(self.out_features, self.in_features)
        return whole.index_copy(1, self.places.long(), self.columns)
