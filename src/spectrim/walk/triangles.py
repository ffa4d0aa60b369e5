"""Symmetric matrices as files have them: once, not twice, to the bit.

A matrix is cut into bands of rows, and of each band only what stands from its block on the diagonal
to the right is kept, one band behind the other: little more than half of all numbers, which are
read in large runs.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

BANDS = 16  # 17/32 of all numbers are kept
WIDTH = 32  # rows of a band at least


def triangle(matrix: Float[Tensor, "size size"]) -> Float[Tensor, " kept"]:
    """Return what is kept of a symmetric matrix."""
    size = len(matrix)
    return torch.cat([matrix[a:b, a:].flatten() for a, b in _edges(size)] or [matrix.flatten()])


def square(kept: Float[Tensor, " kept"], size: int) -> Float[Tensor, "size size"]:
    """Return the symmetric matrix of so many rows of which this is kept."""
    matrix, at = kept.new_empty(size, size), 0
    for a, b in _edges(size):
        band = kept[at : (at := at + (b - a) * (size - a))].view(b - a, size - a)
        matrix[a:b, a:] = band
        matrix[b:, a:b] = band[:, b - a :].T
    return matrix


def _edges(size: int) -> list[tuple[int, int]]:
    """Return where each band begins and ends."""
    step = max(WIDTH, math.ceil(size / BANDS))
    return [(a, min(a + step, size)) for a in range(0, size, step)]
