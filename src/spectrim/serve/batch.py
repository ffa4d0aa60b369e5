"""What the scheduler runs: sequences in slots, read in pieces and continued together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from numpy import ndarray

Vector = Float[ndarray, " size"]
PIECE = 256  # tokens that are read at once while answers of others wait


@runtime_checkable
class Batch(Protocol):
    """A model with a number of slots, each of which holds one sequence."""

    slots: int
    context: int
    """How many tokens one sequence may have."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that the model puts before it."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""

    def read(self, slot: int, tokens: Sequence[int], *, last: bool) -> Vector | None:
        """Read a piece of a prompt into a slot; with the last one return the logits behind it."""

    def step(self, tokens: Mapping[int, int]) -> dict[int, Vector]:
        """Go on with one token in each slot whose prompt is read, and return their logits."""

    def free(self, slot: int) -> None:
        """Forget the sequence in a slot, whether or not it was read to its end."""

    def embed(self, tokens: Sequence[int]) -> Iterator[Vector]:
        """Yield the mean of a text's last hidden states, [hidden], so far after each piece.

        Nothing where the engine gives no hidden states.
        """

    def close(self) -> None:
        """Give the memory back."""
