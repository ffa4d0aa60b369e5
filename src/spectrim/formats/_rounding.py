"""Steps and offsets for groups of numbers, and rounding to the nearest of what they can express."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Grid:
    """How numbers are rounded: bits of each, how many share a step (0: a row), symmetric or not."""

    bits: int
    group: int
    symmetric: bool

    @property
    def lowest(self) -> int:
        """Return the smallest whole number; the largest is -lowest - 1."""
        return -(1 << self.bits - 1)


@dataclass(frozen=True)
class Rounded:
    """Whole numbers [rows, columns] with steps and offsets [rows, groups], None if symmetric."""

    numbers: Int8[Tensor, "rows columns"]
    scale: Float[Tensor, "rows groups"]
    offset: Float[Tensor, "rows groups"] | None

    def pieces(self, name: str) -> dict[str, Tensor]:
        """Return what a format takes for its packed matrix of this name."""
        found = {f"{name}.numbers": self.numbers, f"{name}.scale": self.scale}
        return found if self.offset is None else {**found, f"{name}.offset": self.offset}

    def written_out(self, group: int) -> Float[Tensor, "rows columns"]:
        """Return what the numbers stand for, in float32; group: of the grid they were made on."""
        columns = self.numbers.shape[1]
        offset = torch.zeros_like(self.scale) if self.offset is None else self.offset
        wide = [each.float().repeat_interleave(group or columns, 1)[:, :columns]
                for each in (self.scale, offset)]  # fmt: skip
        return spoken(self.numbers.float(), *wide)


SHRUNK = tuple(1.0 - 0.025 * step for step in range(21))  # of the range of a group, 1 to 0.5


def steps(
    group: Float[Tensor, "*rows size"],
    weights: Float[Tensor, "#rows size"],
    grid: Grid,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "*rows 1"], Float[Tensor, "*rows 1"]]:
    """Return step and offset of each row's numbers, rounded to ``dtype`` but in float32.

    A range from the least to the greatest number leaves none out; a narrower one makes the others
    finer. Of some ranges that with the least Σ weight (number - rounded)² is taken.
    """
    low, high = group.aminmax(dim=-1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    if grid.symmetric:
        middle, half = torch.zeros_like(low), torch.maximum(low.abs(), high.abs())
    span = -grid.lowest - (1 if grid.symmetric else 0.5)  # of whole numbers, to either side
    best = torch.full_like(low, torch.inf)
    scale, offset = torch.zeros_like(low), torch.zeros_like(low)
    for part in SHRUNK:
        tried = (half * (part / span)).to(dtype).float()
        shift = torch.zeros_like(low) if grid.symmetric else middle + tried / 2
        shift = shift.to(dtype).float()
        error = group - spoken(rounded(group, tried, shift, grid), tried, shift)
        cost = (error.square() * weights).sum(-1, keepdim=True)
        better = cost < best
        best = torch.where(better, cost, best)
        scale, offset = torch.where(better, tried, scale), torch.where(better, shift, offset)
    return scale, offset


def rounded(values: Tensor, scale: Tensor, offset: Tensor, grid: Grid) -> Tensor:
    """Return the whole numbers that come nearest to values, as floats; step 0 has only zeros."""
    whole = ((values - offset) / torch.where(scale > 0, scale, 1.0)).round()
    return whole.clamp(grid.lowest, -grid.lowest - 1)


def spoken(numbers: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return what whole numbers stand for."""
    return numbers * scale + offset


def nearest(
    matrix: Float[Tensor, "rows columns"],
    weights: Float[Tensor, " columns"],
    grid: Grid,
    dtype: torch.dtype,
) -> Rounded:
    """Return a matrix rounded number by number, steps and offsets in ``dtype``.

    weights: how much the square of an error counts in each column when ranges are chosen.
    """
    rows, columns = matrix.shape
    size = grid.group or columns
    spare = -columns % size  # filled up with numbers of the group, so that they do not widen it
    full = functional.pad(matrix.float()[None], (0, spare), mode="replicate")[0]
    counted = functional.pad(weights.float(), (0, spare)).unflatten(0, (-1, size))
    groups = full.unflatten(1, (-1, size))
    scale, offset = steps(groups, counted, grid, dtype)
    whole = rounded(groups, scale, offset, grid).flatten(1)[:, :columns].to(torch.int8)
    shift = None if grid.symmetric else offset[..., 0].to(dtype)
    return Rounded(whole, scale[..., 0].to(dtype), shift)
