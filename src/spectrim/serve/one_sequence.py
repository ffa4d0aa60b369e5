"""An engine that holds one sequence, as a batch of one slot: GGUF files and ONNX folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from spectrim.engines import Running
from spectrim.serve.batch import Vector


class OneSlot:
    """Answers come one after the other."""

    slots = 1

    def __init__(self, running: Running) -> None:
        self.context = running.context
        self.encode, self.decode = running.encode, running.decode
        self._running = running

    def read(self, slot: int, tokens: Sequence[int], *, last: bool) -> Vector | None:
        """Read a piece of a prompt; with the last one return the logits behind it."""
        logits = self._running.feed(tokens)
        return logits if last else None

    def step(self, tokens: Mapping[int, int]) -> dict[int, Vector]:
        """Go on with a token."""
        return {slot: self._running.feed([token]) for slot, token in tokens.items()}

    def free(self, slot: int) -> None:
        """Forget the sequence."""
        self._running.clear()

    def embed(self, tokens: Sequence[int]) -> Iterator[Vector]:
        """Yield nothing: engines give logits, and no hidden states."""
        return iter(())

    def close(self) -> None:
        """Give the memory back."""
        self._running.close()
