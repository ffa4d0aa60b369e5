"""What reads a packed embedding table that another module holds."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear
from spectrim.formats.quantized_embedding import QuantizedEmbedding


class Tied(FactoredLinear):
    """A module without numbers of its own, a bias apart; it runs once ``link`` named the owner.

    owner: dotted path of the embedding, from the root of the model.
    """

    follows: ClassVar[bool] = True

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, owner: str = ""
    ) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.owner = owner
        self._linked: tuple[QuantizedEmbedding, ...] = ()  # in a tuple, it is no child

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return 0: the table is counted with its owner."""
        return 0

    def link(self, owner: nn.Module | None) -> None:
        """Read the table of this module from now on.

        Raises:
            SpectrimError: it holds no packed table, or one of another shape.
        """
        shape = (self.out_features, self.in_features)
        table = owner if isinstance(owner, QuantizedEmbedding) else None
        if table is None or (table.out_features, table.in_features) != shape:
            raise SpectrimError(
                f"a map reads the table of {self.owner or 'another'}, which holds none of "
                f"{shape[0]} x {shape[1]} numbers; store both in few bits, or neither"
            )
        self._linked = (table,)

    @property
    def table(self) -> QuantizedEmbedding:
        """Return the owner.

        Raises:
            SpectrimError: no owner was linked.
        """
        if not self._linked:
            raise SpectrimError("a tied map has no table of its own; link its owner first")
        return self._linked[0]

    @property
    def weight(self) -> Tensor:
        """Return a parameter of the owner, so that both are seen to be tied."""
        return self.table.weight

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take nothing."""

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the product of the table with hidden states."""
        return self.table.apply_factors(x)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the table."""
        return self.table.dense()

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), "owner": self.owner}
