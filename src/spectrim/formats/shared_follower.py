"""A map that reads the basis of another map with the same input: its coefficients, r m numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear
from spectrim.formats.shared_owner import SharedOwner, orthonormal


class SharedFollower(FactoredLinear):
    """W = coefficients @ the owner's basis; it computes nothing before ``link`` names the owner.

    The owner is no child of this module, so a checkpoint holds the basis once. The product of
    basis and input is computed anew here: remembering it from one module to the next would be wrong
    where the input changes in place, or where gradients are wanted of one of them only.

    owner: dotted path of the owner's site, from the root of the model.
    """

    follows: ClassVar[bool] = True

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, owner: str = ""
    ) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.owner = owner
        self.coefficients = nn.Parameter(torch.empty(out_features, rank))
        self._linked: tuple[SharedOwner, ...] = ()  # in a tuple, it is no child

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return r m: the basis is counted with its owner."""
        return rank * out_features

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return n, as the maps together may have more outputs than each."""
        return in_features

    def link(self, owner: nn.Module | None) -> None:
        """Read the basis of this module from now on.

        Raises:
            SpectrimError: it owns no basis, or one of another rank or for other inputs.
        """
        if not isinstance(owner, SharedOwner) or owner.basis.shape != (self.rank, self.in_features):
            raise SpectrimError(
                f"a map reads the basis of {self.owner or 'another'}, which holds none of rank "
                f"{self.rank} for {self.in_features} inputs; store both in one basis, or neither"
            )
        self._linked = (owner,)

    @property
    def basis(self) -> Float[Tensor, "rank in"]:
        """Return the owner's basis in the dtype of the coefficients.

        Raises:
            SpectrimError: no owner was linked.
        """
        if not self._linked:
            raise SpectrimError("a shared_follower has no basis of its own; link its owner first")
        return self._linked[0].basis.to(self.coefficients.dtype)

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the first ``rank`` columns of ``left`` for the owner's ``right``."""
        _, triangle = orthonormal(pieces["right"], self.rank)
        self.coefficients.copy_(pieces["left"][:, : self.rank].double() @ triangle)

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return coefficients (basis x)."""
        return functional.linear(functional.linear(x, self.basis), self.coefficients)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the product of the coefficients and the owner's basis."""
        return self.coefficients @ self.basis

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), "owner": self.owner}

    def multiply_adds(self) -> int:
        """Return r(m + n): the basis is multiplied here again."""
        return self.rank * (self.out_features + self.in_features)
