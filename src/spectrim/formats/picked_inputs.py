"""A matrix of some columns, which reads their inputs from among all."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.kernels.maps import Parts


class PickedInputs(FewerInputs):
    """A linear map from all inputs that reads ``rank`` of them, columns [out, rank].

    It stands behind a map that leaves the others at zero (padded_outputs.py).
    """

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return columns x, x at the places."""
        places = self.places.long().expand(*x.shape[:-1], self.rank)
        return functional.linear(x.gather(-1, places), self.columns)

    def parts(self) -> Parts | None:
        """Return None, as the inputs are picked first."""
        return None

    def dense(self) -> Float[Tensor, "out in"]:
        """Return ``columns`` at their places, zeros elsewhere."""
        whole = self.columns.new_zeros(self.out_features, self.in_features)
        return whole.index_copy(1, self.places.long(), self.columns)
