"""Columns coded as paths through a trellis, each error passed on to the columns behind it.

GPTQ rounds column after column and lets those behind make up for each error. Here a column is not
rounded number by number: all of it is one path, the one of least squares weighted by how much the
loss feels each row, G_ii (block LDLQ of QTIP 2406.11235, with blocks of one column). Columns go
from the input with the largest moment to that with the smallest.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.formats.packed.trellis_matrix import UNIT, column_bytes
from spectrim.kernels.library import Library, checked, library
from spectrim.kernels.structures import Paths, address
from spectrim.walk.moments import damped, inverse_root

SIZES = ((0.5, 1, 3.5), (2.5, 1, 3.5), (3, 1.08, 3.3), (4, 1.17, 3.1), (5, 1.2, 3))
"""Bits a number; by how much codes spread more than what they stand for, which at many bits is best
for the few numbers in the tails of a Gaussian; and how many standard deviations of codes the
largest number of a column lies at, at most."""
DAMPING = 0.03  # of the mean diagonal, before a moment is inverted
EVEN = 0.1  # of the weights of rows is alike for all, as G of few tokens is noisy


@dataclass(frozen=True)
class PathMatrix:
    """W ≈ row_scale code column_scale, and what it stands for in float32."""

    codes: UInt8[Tensor, "columns bytes"]
    row_scale: Float[Tensor, " rows"]
    column_scale: Float[Tensor, " columns"]
    values: Float[Tensor, "rows columns"]

    def pieces(self) -> dict[str, Tensor]:
        """Return what the format takes."""
        return {name: getattr(self, name) for name in ("codes", "row_scale", "column_scale")}


@dataclass(frozen=True)
class Feedback:
    """In which order columns go, and what an error of each takes from those behind it."""

    order: Int[Tensor, " columns"]
    coupling: Float[Tensor, "columns columns"]
    """Of the columns in order, with ones on its diagonal: GPTQ's U, each row by its pivot."""

    @classmethod
    def of(cls, inputs: Float[Tensor, "columns columns"], damping: float = DAMPING) -> Feedback:
        """Return that of a second moment; damping: part of its mean diagonal that is added.

        Raises:
            ArithmeticError: the damped moment is far from positive semidefinite.
        """
        order = inputs.diagonal().argsort(descending=True, stable=True)
        root = inverse_root(damped(inputs[order][:, order], damping))
        return cls(order, (root / root.diagonal()[:, None]).float().contiguous())


@torch.no_grad()
def paths(
    matrix: Float[Tensor, "rows columns"],
    feedback: Feedback,
    gradients: Float[Tensor, "rows rows"] | None,
    rate: int,
    dtype: torch.dtype,
) -> PathMatrix:
    """Return a matrix with its columns as paths, rate / 16 bits a number.

    gradients: the second moment of the outputs' gradients; None: every row counts alike.
    dtype: of the scales.

    Raises:
        SpectrimError: there are no compiled kernels, without which the search takes hours.
    """
    found = kernels()
    rows, columns = matrix.shape
    matrix = matrix.float()
    row_scale = matrix.square().mean(1).sqrt().to(dtype).float()
    left = matrix.T[feedback.order].contiguous()
    coded = torch.zeros(columns, column_bytes(rows, rate), dtype=torch.uint8)
    scale, values = torch.zeros(columns), torch.empty_like(left)
    tensors = (left, weights_of(row_scale, gradients), row_scale, scale, feedback.coupling, values,
               coded)  # fmt: skip
    asked = Paths(
        *(address(one) for one in tensors), *size_at(rate), columns, rows, rate, coded.shape[1]
    )
    checked(found.paths(ctypes.byref(asked)))
    back = feedback.order.argsort()
    return PathMatrix(coded[back], row_scale, scale[back], values[back].T.contiguous())


def kernels() -> Library:
    """Return the compiled kernels.

    Raises:
        SpectrimError: there are none.
    """
    found = library()
    if found is None:
        raise SpectrimError(
            "paths through a trellis are searched by the compiled kernels, which this installation "
            "lacks; install spectrim again where ziglang can be installed, or leave out trellis"
        )
    return found


def size_at(rate: int) -> tuple[float, float]:
    """Return how much codes spread and how far the largest number lies, at bits of 16 numbers."""
    bits, spreads, clips = zip(*SIZES, strict=True)
    here = rate / UNIT
    return float(numpy.interp(here, bits, spreads)), float(numpy.interp(here, bits, clips))


def weights_of(row_scale: Float[Tensor, " rows"], gradients: Tensor | None) -> Tensor:
    """Return what the square of an error counts in each row, in units of its scale."""
    felt = torch.ones_like(row_scale)
    if gradients is not None and gradients.any():
        own = gradients.diagonal().float()
        felt = (1 - EVEN) * own / own.mean() + EVEN
    weights = row_scale.square() * felt
    return (weights / weights.mean().clamp_min(torch.finfo(torch.float32).tiny)).contiguous()
