"""What runs a made model: transformers, llama.cpp, ONNX Runtime; one file each.

An engine is one file with a function of its name, ``(path, threads, context)``, that returns a
`Running` model, and a constant ``READS``: patterns of the files that it runs, one of which is
the path itself or lies in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from numpy import ndarray

from spectrim.errors import SpectrimError
from spectrim.registry import Registry

engines = Registry("engine", "spectrim.engines")


@runtime_checkable
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


def engine_of(path: Path) -> str:
    """Return the name of the engine that runs a file or folder.

    Raises:
        SpectrimError: there is no such path, or no engine runs it.
    """
    if not path.exists():
        raise SpectrimError(f"there is no file or folder '{path}'; check the path")
    names = [path.name]
    if path.is_dir():  # a GGUF file is named itself, as there may be several beside each other
        names = [file.name for file in path.iterdir() if file.suffix != ".gguf"]
    for engine in engines.names():
        reads = engines.constant(engine, "READS")
        if any(fnmatch(name, pattern) for name in names for pattern in reads):
            return engine
    raise SpectrimError(
        f"nothing here runs '{path}'; expected a folder with safetensors, a .gguf file, or a "
        "folder with .onnx"
    )
