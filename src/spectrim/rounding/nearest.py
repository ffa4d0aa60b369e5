"""Scales and offsets for groups of weights, and rounding to the nearest value they can express."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor
from torch.nn import functional

from spectrim.formats.packed.scales import (
    Grid,
    dequantize,
    least_scale,
    offset_code,
    offsets,
    quantize,
    scale_code,
    scales,
)

SHRUNK = tuple(1.0 - 0.025 * part for part in range(21))  # of the range of a group, 1 to 0.5


@dataclass(frozen=True)
class GroupScale:
    """Scale and offset of one group of every row, and their codes; all float32 [rows, 1].

    offset, offset_code: 0 where the grid is symmetric. scale_code: 1 where a row is one group.
    """

    scale: Float[Tensor, "rows 1"]
    offset: Float[Tensor, "rows 1"]
    scale_code: Float[Tensor, "rows 1"]
    offset_code: Float[Tensor, "rows 1"]


@dataclass(frozen=True)
class ScaleCodes:
    """Scales and offsets of a matrix as they are stored (formats/packed/scales.py).

    row_scale: in the checkpoint's dtype. scale_code: None where a row is one group. offset_code:
    None where the grid is symmetric. bits: of the weights' codes.
    """

    row_scale: Float[Tensor, "rows 1"]
    scale_code: UInt8[Tensor, "rows groups"] | None
    offset_code: Int8[Tensor, "rows groups"] | None
    bits: int

    @classmethod
    def of_groups(
        cls, groups: Sequence[GroupScale], row_scale: Tensor | None, grid: Grid, dtype: torch.dtype
    ) -> ScaleCodes:
        """Return the codes of all groups of the rows, given those of each group.

        row_scale: None where a row is one group; its scale, in ``dtype``, then is the row scale.
        """
        scale = None
        if row_scale is None:
            row_scale = groups[0].scale.to(dtype)
        else:
            scale = torch.cat([one.scale_code for one in groups], 1).to(torch.uint8)
        if grid.symmetric:
            return cls(row_scale, scale, None, grid.bits)
        offset = torch.cat([one.offset_code for one in groups], 1).to(torch.int8)
        return cls(row_scale, scale, offset, grid.bits)

    def values(self) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows groups"]]:
        """Return scales and offsets in float32; offsets of 0 where there are none."""
        scale = scales(self.row_scale, self.scale_code)
        if self.offset_code is None:
            return scale.float(), torch.zeros_like(scale, dtype=torch.float32)
        return scale.float(), offsets(scale, self.offset_code, self.bits).float()


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix as codes of its weights, and the codes of their scales and offsets."""

    codes: Int8[Tensor, "rows columns"]
    scale_codes: ScaleCodes

    def pieces(self, name: str) -> dict[str, Tensor]:
        """Return what a format takes for its packed matrix of this name."""
        found = {
            "codes": self.codes,
            "unit": self.scale_codes.row_scale,  # as its tensor in the checkpoint is called
            "scale_code": self.scale_codes.scale_code,
            "offset_code": self.scale_codes.offset_code,
        }
        return {f"{name}.{key}": value for key, value in found.items() if value is not None}

    def dequantize(self, group: int) -> Float[Tensor, "rows columns"]:
        """Return the values that the codes stand for, in float32; group: of the grid."""
        columns = self.codes.shape[1]
        scale, offset = (
            each.repeat_interleave(group or columns, 1)[:, :columns]
            for each in self.scale_codes.values()
        )
        return dequantize(self.codes.float(), scale, offset)


def nearest(
    matrix: Float[Tensor, "rows columns"],
    weights: Float[Tensor, " columns"],
    grid: Grid,
    dtype: torch.dtype,
) -> QuantizedMatrix:
    """Return a matrix of which each weight is rounded by itself.

    weights: how much the square of an error counts in each column when ranges are chosen.
    dtype: of the row scales.
    """
    columns = matrix.shape[1]
    size = grid.group or columns
    groups = in_groups(matrix.float(), size)
    counted = functional.pad(weights.float(), (0, -columns % size)).unflatten(0, (-1, size))
    row_scale = row_scales(groups, grid, dtype)
    found = [
        group_scale(
            groups[:, at], counted[at][None], grid, dtype if row_scale is None else row_scale
        )
        for at in range(groups.shape[1])
    ]
    codes = [
        quantize(groups[:, at], one.scale, one.offset, grid.codes) for at, one in enumerate(found)
    ]
    whole = torch.cat(codes, 1)[:, :columns].to(torch.int8)
    return QuantizedMatrix(whole, ScaleCodes.of_groups(found, row_scale, grid, dtype))


def row_scales(
    groups: Float[Tensor, "rows groups size"], grid: Grid, dtype: torch.dtype, room: float = 1.0
) -> Float[Tensor, "rows 1"] | None:
    """Return the row scales, in ``dtype``, of rows of several groups; None where a row is one.

    room: how many times as large as the largest scale of a row another one may become.
    """
    if groups.shape[1] == 1:
        return None
    middle, half = _range(groups, grid)
    return (room * _covering(half, middle, grid).amax(1)).to(dtype)


def group_scale(
    group: Float[Tensor, "rows size"],
    weights: Float[Tensor, "#rows size"],
    grid: Grid,
    row_scale: Float[Tensor, "rows 1"] | torch.dtype,
) -> GroupScale:
    """Return scale and offset of one group of each row.

    A range from the least to the greatest weight leaves none out; a narrower one makes the others
    finer. Of the ranges in SHRUNK that with the least Σ weights (w - dequantised w)² is taken.
    row_scale: where the rows are one group each, the dtype in which their scales are stored.
    """
    middle, half = _range(group, grid)
    best = torch.full_like(half, torch.inf)
    kept: list[Tensor] = [torch.zeros_like(half) for _ in range(4)]
    for part in SHRUNK:
        wanted = _covering(half * part, middle, grid)
        code = torch.ones_like(wanted)
        if isinstance(row_scale, Tensor):
            code = scale_code(wanted, row_scale.float())
            held = scales(row_scale, code)
        else:
            held = wanted.to(row_scale)
        scale = held.float()
        shift_code = torch.zeros_like(scale)
        if not grid.symmetric:
            shift_code = offset_code(middle + scale / 2, scale, grid.bits)
        offset = offsets(held, shift_code, grid.bits).float()
        error = group - dequantize(quantize(group, scale, offset, grid.codes), scale, offset)
        cost = (error.square() * weights).sum(-1, keepdim=True)
        better = cost < best
        best = torch.where(better, cost, best)
        found = (scale, offset, code, shift_code)
        kept = [torch.where(better, new, old) for new, old in zip(found, kept, strict=True)]
    return GroupScale(*kept)


def in_groups(
    matrix: Float[Tensor, "rows columns"], size: int
) -> Float[Tensor, "rows groups size"]:
    """Return the groups of each row; a short last one repeats its last weight.

    So its range is no wider for that.
    """
    spare = -matrix.shape[1] % size
    full = functional.pad(matrix[None], (0, spare), mode="replicate")[0]
    groups: Tensor = full.unflatten(1, (-1, size))
    return groups


def _range(
    weights: Float[Tensor, "*rows size"], grid: Grid
) -> tuple[Float[Tensor, "*rows 1"], Float[Tensor, "*rows 1"]]:
    """Return the middle of the weights' range and half of its width; symmetric: around zero."""
    low, high = weights.aminmax(dim=-1, keepdim=True)
    if grid.symmetric:
        return torch.zeros_like(low), torch.maximum(low.abs(), high.abs())
    return (low + high) / 2, (high - low) / 2


def _covering(half: Tensor, middle: Tensor, grid: Grid) -> Tensor:
    """Return the scale with which a range is covered; its offset has to be reached as well."""
    span = -grid.lowest - (1 if grid.symmetric else 0.5)  # of codes, to either side
    return torch.maximum(half / span, least_scale(middle, grid.bits))
