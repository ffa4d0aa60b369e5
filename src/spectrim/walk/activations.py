"""Hidden states of all sequences between two blocks, in a file that is never mapped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrim.errors import SpectrimError


class Activations:
    """Hidden states [sequences, length, hidden] on disk, read and written batch by batch.

    A file appears under its name only when ``finish`` renames it, so one that exists is complete.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self._bytes_each = shape[1] * shape[2] * dtype.itemsize
        self._partial = path.with_name(path.name + ".partial")

    def exists(self) -> bool:
        """Return whether a complete file is there."""
        return self.path.exists()

    def write(self, start: int, hidden: Tensor) -> None:
        """Write the states of the sequences from ``start`` on."""
        hidden = hidden.detach().to(self.dtype).contiguous()
        mode = "r+b" if self._partial.exists() else "w+b"
        with self._partial.open(mode) as file:
            file.seek(start * self._bytes_each)
            file.write(_bytes(hidden))

    def read(self, start: int, count: int) -> Tensor:
        """Return the states of up to ``count`` sequences from ``start`` on."""
        count = min(count, self.shape[0] - start)
        buffer = torch.empty((count, *self.shape[1:]), dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(start * self._bytes_each)
            got = file.readinto(_bytes(buffer))
        if got != count * self._bytes_each:
            raise SpectrimError(f"{self.path} is cut off; delete its folder and run again")
        return buffer

    def finish(self) -> None:
        """Give the file its name."""
        os.replace(self._partial, self.path)

    def remove(self) -> None:
        """Delete the file, complete or not."""
        self.path.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor as bytes."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array).cast("B")
