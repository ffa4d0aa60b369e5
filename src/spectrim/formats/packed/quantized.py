"""What formats of packed matrices have in common: their keywords, their bytes, what they take."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from spectrim.formats import FactoredLinear
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid

GRID = ("bits", "group", "symmetric")  # its fields, as config.json names them


class Quantized(FactoredLinear):
    """A map whose matrices are packed; each is a child of the name that ``matrices`` gives it.

    grid: the same for all its matrices. In config.json its fields stand beside the other keywords.
    """

    rounded = True

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, grid: Grid
    ) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.grid = grid
        for name, shape in self.matrices(out_features, in_features, rank).items():
            self.add_module(name, PackedMatrix(*shape, grid))

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> Quantized:
        """Return this format, empty, from what ``shape()`` returned; the grid in its fields."""
        fields = {name: shape[name] for name in GRID}
        others = {name: value for name, value in shape.items() if name not in GRID}
        return cls(**others, grid=Grid(**fields))

    @classmethod
    @abstractmethod
    def matrices(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """Return the shape, (rows, columns), of each packed matrix."""

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return how many codes are packed; scales and offsets are not counted."""
        shapes = cls.matrices(out_features, in_features, rank).values()
        return sum(rows * columns for rows, columns in shapes)

    @classmethod
    def stored_bytes(
        cls, shape: tuple[int, int, int], grid: Grid, dtype: torch.dtype, correction: int = 0
    ) -> int:
        """Return the bytes on disk, the bias apart.

        shape: (out, in, rank). dtype: of row scales, and of the factors of a correction.
        correction: the rank of that correction, 0 for none.
        """
        return correction * (shape[0] + shape[1]) * dtype.itemsize + sum(
            PackedMatrix.stored_bytes(one, grid, dtype) for one in cls.matrices(*shape).values()
        )

    def part(self, name: str) -> PackedMatrix:
        """Return a packed matrix by its name."""
        found = self.get_submodule(name)
        assert isinstance(found, PackedMatrix)
        return found

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take codes and row scales of each matrix: ``name.codes``, ``name.unit`` and so on.

        What is not packed comes under its own name.
        """
        for name in self.matrices(self.out_features, self.in_features, self.rank):
            own = {
                key.removeprefix(f"{name}."): piece
                for key, piece in pieces.items()
                if key.startswith(f"{name}.")
            }
            self.part(name).take(own)
        for name, tensor in self.state_dict(keep_vars=True).items():
            if name in pieces:
                tensor.copy_(pieces[name])

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty."""
        return {**super().shape(), **{name: getattr(self.grid, name) for name in GRID}}

    def extra_repr(self) -> str:
        """Return shape and bits for ``print(model)``."""
        return f"{super().extra_repr()}, {self.grid.bits} bits"
