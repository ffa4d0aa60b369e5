"""What runs a made model: transformers, llama.cpp, ONNX Runtime; one file each.

An engine is one file with a function of its name, ``(path, threads, context)``, that returns a
`Running` model, and a constant ``READS`` that says what paths it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from numpy import ndarray

from spectrim.registry import Registry

engines = Registry("engine", "spectrim.engines")


class Running(Protocol):
    """A model that an engine has in memory, with one sequence in its key-value cache."""

    context: int
    """How many tokens the cache holds."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that the model puts before it."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""

    def clear(self) -> None:
        """Forget the sequence."""

    def feed(self, tokens: Sequence[int]) -> Float[ndarray, " vocabulary"]:
        """Go on with these tokens and return the logits behind the last one, fp32."""

    def close(self) -> None:
        """Give the memory back."""
