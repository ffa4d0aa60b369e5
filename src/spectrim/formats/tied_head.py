"""A head that computes with the packed table of the embedding: no numbers of its own."""

from __future__ import annotations

from spectrim.formats._tied import Tied

STAGE = "quantize"


class TiedHead(Tied):
    """Logits as products of hidden states with the rows of the embedding's table."""

    def multiply_adds(self) -> int:
        """Return one for every number of the table."""
        return self.in_features * self.out_features
