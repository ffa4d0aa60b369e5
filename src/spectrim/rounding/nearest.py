"""Steps and offsets for groups of numbers, and rounding to the nearest of what they can express."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor
from torch.nn import functional

from spectrim.formats.packed.steps import (
    Grid,
    least_scale,
    offset_code,
    offsets,
    scale_code,
    scales,
)


@dataclass(frozen=True)
class Coded:
    """Steps and offsets [rows, groups] by their codes (_steps.py), those of offsets None if none.

    unit: [rows, 1], in the checkpoint's dtype. scale_code: None where a row is one group.
    """

    unit: Float[Tensor, "rows 1"]
    scale_code: UInt8[Tensor, "rows groups"] | None
    offset_code: Int8[Tensor, "rows groups"] | None
    bits: int

    def values(self) -> tuple[Tensor, Tensor]:
        """Return steps and offsets [rows, groups] in float32; offsets of 0 where there are none."""
        scale = scales(self.unit, self.scale_code)
        if self.offset_code is None:
            return scale.float(), torch.zeros_like(scale, dtype=torch.float32)
        return scale.float(), offsets(scale, self.offset_code, self.bits).float()


@dataclass(frozen=True)
class Rounded:
    """Whole numbers [rows, columns] with codes of their steps and offsets."""

    numbers: Int8[Tensor, "rows columns"]
    coded: Coded

    def pieces(self, name: str) -> dict[str, Tensor]:
        """Return what a format takes for its packed matrix of this name."""
        coded = self.coded
        found = {
            "numbers": self.numbers,
            "unit": coded.unit,
            "scale_code": coded.scale_code,
            "offset_code": coded.offset_code,
        }
        return {f"{name}.{key}": value for key, value in found.items() if value is not None}

    def written_out(self, group: int) -> Float[Tensor, "rows columns"]:
        """Return what the numbers stand for, in float32; group: of the grid they were made on."""
        columns = self.numbers.shape[1]
        wide = [each.repeat_interleave(group or columns, 1)[:, :columns]
                for each in self.coded.values()]  # fmt: skip
        return spoken(self.numbers.float(), *wide)


SHRUNK = tuple(1.0 - 0.025 * step for step in range(21))  # of the range of a group, 1 to 0.5


@dataclass(frozen=True)
class Steps:
    """Step and offset [rows, 1] of one group of every row, and their codes, all in float32."""

    scale: Tensor
    offset: Tensor
    scale_code: Tensor
    offset_code: Tensor


def row_units(
    groups: Float[Tensor, "rows groups size"], grid: Grid, dtype: torch.dtype, room: float = 1.0
) -> Float[Tensor, "rows 1"] | None:
    """Return the units of rows that have several groups each, None where a row is one.

    room: how many times as large as the largest step a step may become.
    """
    if groups.shape[1] == 1:
        return None
    middle, half = _range(groups, grid)
    return (room * _scale(half, middle, grid).amax(1)).to(dtype)


def steps(
    group: Float[Tensor, "rows size"],
    weights: Float[Tensor, "#rows size"],
    grid: Grid,
    unit: Float[Tensor, "rows 1"] | torch.dtype,
) -> Steps:
    """Return step and offset of one group of each row.

    A range from the least to the greatest number leaves none out; a narrower one makes the others
    finer. Of some ranges that with the least Σ weight (number - rounded)² is taken.
    unit: of the rows; where these are one group each, the dtype in which their steps are stored.
    """
    middle, half = _range(group, grid)
    best = torch.full_like(half, torch.inf)
    kept: list[Tensor] = [torch.zeros_like(half) for _ in range(4)]
    for part in SHRUNK:
        wanted = _scale(half * part, middle, grid)
        code = torch.ones_like(wanted)
        if isinstance(unit, Tensor):
            code = scale_code(wanted, unit.float())
            held = scales(unit, code)
        else:
            held = wanted.to(unit)
        tried = held.float()
        shift_code = torch.zeros_like(tried)
        if not grid.symmetric:
            shift_code = offset_code(middle + tried / 2, tried, grid.bits)
        shift = offsets(held, shift_code, grid.bits).float()
        error = group - spoken(rounded(group, tried, shift, grid), tried, shift)
        cost = (error.square() * weights).sum(-1, keepdim=True)
        better = cost < best
        best = torch.where(better, cost, best)
        found = (tried, shift, code, shift_code)
        kept = [torch.where(better, new, old) for new, old in zip(found, kept, strict=True)]
    return Steps(*kept)


def coded(each: Sequence[Steps], unit: Tensor | None, grid: Grid, dtype: torch.dtype) -> Coded:
    """Return the codes of the groups of all rows, from those of each group."""
    scale = None
    if unit is None:
        unit = each[0].scale.to(dtype)
    else:
        scale = torch.cat([one.scale_code for one in each], 1).to(torch.uint8)
    if grid.symmetric:
        return Coded(unit, scale, None, grid.bits)
    offset = torch.cat([one.offset_code for one in each], 1).to(torch.int8)
    return Coded(unit, scale, offset, grid.bits)


def _range(numbers: Float[Tensor, "*rows size"], grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the middle of the numbers' range and half of its width, [*rows, 1] each."""
    low, high = numbers.aminmax(dim=-1, keepdim=True)
    if grid.symmetric:
        return torch.zeros_like(low), torch.maximum(low.abs(), high.abs())
    return (low + high) / 2, (high - low) / 2


def _scale(half: Tensor, middle: Tensor, grid: Grid) -> Tensor:
    """Return the step with which a range is covered; its offset has to be reached as well."""
    span = -grid.lowest - (1 if grid.symmetric else 0.5)  # of whole numbers, to either side
    return torch.maximum(half / span, least_scale(middle, grid.bits))


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
    """Return a matrix rounded number by number, the units of its steps in ``dtype``.

    weights: how much the square of an error counts in each column when ranges are chosen.
    """
    columns = matrix.shape[1]
    size = grid.group or columns
    groups = in_groups(matrix.float(), size)
    counted = functional.pad(weights.float(), (0, -columns % size)).unflatten(0, (-1, size))
    unit = row_units(groups, grid, dtype)
    found = [
        steps(groups[:, at], counted[at][None], grid, dtype if unit is None else unit)
        for at in range(groups.shape[1])
    ]
    whole = [rounded(groups[:, at], one.scale, one.offset, grid) for at, one in enumerate(found)]
    numbers = torch.cat(whole, 1)[:, :columns].to(torch.int8)
    return Rounded(numbers, coded(found, unit, grid, dtype))


def in_groups(
    matrix: Float[Tensor, "rows columns"], size: int
) -> Float[Tensor, "rows groups size"]:
    """Return the groups of each row, the last filled up with a number of its own.

    So it is no wider for that.
    """
    spare = -matrix.shape[1] % size
    full = functional.pad(matrix[None], (0, spare), mode="replicate")[0]
    groups: Tensor = full.unflatten(1, (-1, size))
    return groups
