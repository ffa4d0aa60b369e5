"""The matrix itself, with two factors that make up for what was done to it, such as zeros."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats import FactoredLinear
from spectrim.kernels.maps import Parts
from spectrim.kernels.structures import Numbers

STAGE = "compensate"


class CorrectedDense(FactoredLinear):
    """W = matrix + second @ first with first [correction, in] and second [out, correction].

    ``rank`` is min(out, in) and decides nothing.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, *, correction: int
    ) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.correction = correction
        self.matrix = nn.Parameter(torch.empty(out_features, in_features))
        self.first = nn.Parameter(torch.empty(correction, in_features))
        self.second = nn.Parameter(torch.empty(out_features, correction))

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return m n."""
        return out_features * in_features

    @classmethod
    def stored_bytes(
        cls, shape: tuple[int, int, int], dtype: torch.dtype, correction: int = 0
    ) -> int:
        """Return the bytes on disk, the bias apart; shape: (out, in, rank)."""
        out_features, in_features, _ = shape
        factors = correction * (out_features + in_features)
        return (out_features * in_features + factors) * dtype.itemsize

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take ``matrix``, ``first`` and ``second``."""
        for name in ("matrix", "first", "second"):
            self.get_parameter(name).copy_(pieces[name])

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return matrix x + second (first x)."""
        return functional.linear(x, self.matrix) + functional.linear(
            functional.linear(x, self.first), self.second
        )

    def parts(self) -> Parts:
        """Return what the kernels compute W x with."""
        return Parts(Numbers(self.matrix), Numbers(self.first), Numbers(self.second))

    def dense(self) -> Float[Tensor, "out in"]:
        """Return matrix + second @ first."""
        return self.matrix + self.second @ self.first

    def stored(self) -> int:
        """Return the numbers of the matrix and of the two factors."""
        return super().stored() + self.correction * (self.in_features + self.out_features)

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), "correction": self.correction}
