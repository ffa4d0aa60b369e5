"""A matrix of some rows, at their places among the outputs; the other outputs are zeros."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats import FactoredLinear


class PaddedOutputs(FactoredLinear):
    """A linear map to all outputs of which ``rank`` are stored, for the maps before attention.

    rows [rank, in]; ``places`` [rank] (int32) says which outputs they are. The code around
    attention parts its inputs into heads of one width, so a head that has fewer dimensions is
    filled up with zeros: they add nothing to a score, and o does not read them (picked_inputs.py).
    ``bias`` is [out], zero where no row is.
    """

    places: Int[Tensor, " rank"]

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.rows = nn.Parameter(torch.empty(rank, in_features))
        self.register_buffer("places", torch.empty(rank, dtype=torch.int32))

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r n."""
        return rank * in_features

    @classmethod
    def bytes(cls, out_features: int, in_features: int, rank: int, dtype: torch.dtype) -> int:
        """Return the bytes of the numbers and of the int32 places."""
        return super().bytes(out_features, in_features, rank, dtype) + 4 * rank

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the number of outputs."""
        return out_features

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the first ``rank`` of ``rows`` [out, in], and of ``order`` [out] their places."""
        self.rows.copy_(pieces["rows"][: self.rank])
        self.places.copy_(pieces["order"][: self.rank])

    def take_bias(self, bias: Float[Tensor, " out"], pieces: dict[str, Tensor]) -> None:
        """Take the bias as ``turn`` [out, dim], by importance, turns that of each row's head."""
        assert self.bias is not None
        order, turn = pieces["order"][: self.rank], pieces["turn"][: self.rank].double()
        heads = bias.double().unflatten(0, (-1, turn.shape[1]))  # [heads, dim]
        self.bias.zero_()
        self.bias[order] = (turn * heads[order // turn.shape[1]]).sum(1).to(self.bias.dtype)

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return rows x at their places."""
        y = functional.linear(x, self.rows)  # [*batch, rank]
        whole = y.new_zeros(*y.shape[:-1], self.out_features)
        return whole.scatter(-1, self.places.long().expand(y.shape), y)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return ``rows`` at their places."""
        whole = self.rows.new_zeros(self.out_features, self.in_features)
        return whole.index_copy(0, self.places.long(), self.rows)
