"""Codes and scales of a rounded matrix improved in turn, each to what is best given the others.

GPTQ takes every weight once and never looks back. Here each code is chosen anew with all others as
they are, column by column (the coordinate descent of LNQ, GuidedQuant 2505.07004), and before the
columns of a group its scales and offsets by least squares. tr(Δ H Δᵀ) never rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.formats.packed.scales import (
    Grid,
    dequantize,
    offset_code,
    offsets,
    scale_code,
    scales,
)
from spectrim.rounding.column_choice import LevelGrid, choose
from spectrim.rounding.nearest import QuantizedMatrix, ScaleCodes

ENOUGH = 1e-3  # of the error: what a cycle has to gain for another one
SINGULAR = 1e-6  # of a product of pivots: below, a scale and an offset cannot be told apart


def descended(
    matrix: Float[Tensor, "rows columns"],
    moment: Float[Tensor, "columns columns"],
    rounded: QuantizedMatrix,
    grid: Grid,
    cycles: int,
) -> QuantizedMatrix:
    """Return a rounded matrix whose error tr(Δ H Δᵀ) is no larger, and mostly smaller.

    moment: H, damped. rounded: of this matrix on this grid; row scales stay as they are.
    cycles: over all columns, at most; it ends where one gains next to nothing.
    """
    if not cycles:
        return rounded
    state = _State.of(matrix, moment, rounded, grid)
    error = state.error()
    for _ in range(cycles):
        for at in range(len(state.scale)):
            state.group(at)
        before, error = error, state.error()
        if error > (1 - ENOUGH) * before:
            break
    return state.result(rounded.scale_codes)


@dataclass
class _State:
    """What is being improved; all float32 with columns first, as these are taken one by one.

    left: H Δ, of all columns, kept as the values change. codes, values, left: [columns, rows].
    scale, offset and their codes: [groups, rows].
    """

    grid: Grid
    row_scale: Float[Tensor, "rows 1"]
    moment: Float[Tensor, "columns columns"]
    wanted: Float[Tensor, "columns rows"]
    codes: Float[Tensor, "columns rows"]
    scale: Float[Tensor, "groups rows"]
    offset: Float[Tensor, "groups rows"]
    scale_codes: Float[Tensor, "groups rows"] | None
    offset_codes: Float[Tensor, "groups rows"] | None
    values: Float[Tensor, "columns rows"]
    left: Float[Tensor, "columns rows"]

    @classmethod
    def of(cls, matrix: Tensor, moment: Tensor, rounded: QuantizedMatrix, grid: Grid) -> _State:
        known = rounded.scale_codes
        scale, offset = (each.T.contiguous() for each in known.values())
        coded = [
            None if one is None else one.T.float().contiguous()
            for one in (known.scale_code, known.offset_code)
        ]
        wanted = matrix.float().T.contiguous()
        values = rounded.dequantize(grid.group).T.contiguous()
        held = moment.float()
        return cls(
            grid, known.row_scale, held, wanted, rounded.codes.T.float(), scale, offset,
            coded[0], coded[1], values, held @ (values - wanted),
        )  # fmt: skip

    def error(self) -> float:
        """Return tr(Δ H Δᵀ)."""
        return float(((self.values - self.wanted) * self.left).double().sum())

    def group(self, at: int) -> None:
        """Improve scale, offset and codes of one group of every row."""
        size = self.grid.group or len(self.codes)
        part = slice(at * size, (at + 1) * size)
        own, left, before = self.moment[part, part], self.left[part].clone(), self.values[part]
        values = before.clone()
        if self.scale_codes is not None:
            self._rescale(at, part, left)
            values = dequantize(self.codes[part], self.scale[at], self.offset[at])
            left += own @ (values - before)
        values = self._recode(at, part, values, left)
        self.left += self.moment[:, part] @ (values - before)
        self.values[part] = values

    def _rescale(self, at: int, part: slice, left: Tensor) -> None:
        """Take the scale and offset that are best for the codes as they are, where they are better.

        With Δ going to Δ + s codes + o the error changes by a form of second degree in s and o.
        """
        codes, own = self.codes[part], self.moment[part, part]
        across = own @ codes
        aa, ab, bb = (codes * across).sum(0), across.sum(0), own.sum()
        a, b = -(codes * left).sum(0), -left.sum(0)
        if self.grid.symmetric:
            more, shift = a / torch.where(aa > 0, aa, 1.0), torch.zeros_like(a)
        else:
            pivot = aa * bb - ab * ab
            told = pivot > SINGULAR * aa * bb
            pivot = torch.where(told, pivot, 1.0)
            more = torch.where(told, (a * bb - b * ab) / pivot, 0.0)
            shift = torch.where(told, (aa * b - ab * a) / pivot, 0.0)
        scale, offset, *coded = self._stored(self.scale[at] + more, self.offset[at] + shift)
        more, shift = scale - self.scale[at], offset - self.offset[at]
        change = aa * more**2 + 2 * ab * more * shift + bb * shift**2 - 2 * (a * more + b * shift)
        self._take(at, change < 0, (scale, offset, *coded))

    def _stored(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scales and offsets as they can be stored, and their codes; all [rows]."""
        wide = self.row_scale.float()
        code = scale_code(scale[:, None].clamp_min(0), wide)
        held = scales(self.row_scale, code)
        moved = torch.zeros_like(code)
        if not self.grid.symmetric:
            moved = offset_code(offset[:, None], held.float(), self.grid.bits)
        shifted = offsets(held, moved, self.grid.bits)
        return held.float()[:, 0], shifted.float()[:, 0], code[:, 0], moved[:, 0]

    def _take(self, at: int, better: Tensor, found: tuple[Tensor, ...]) -> None:
        kept = (self.scale, self.offset, self.scale_codes, self.offset_codes)
        for held, new in zip(kept, found, strict=True):
            if held is not None:
                held[at] = torch.where(better, new, held[at])

    def _recode(self, at: int, part: slice, values: Tensor, left: Tensor) -> Tensor:
        """Choose the codes of a group column by column; return the values that they stand for."""
        own = self.moment[part, part]
        sizes = own.diagonal().clamp_min(torch.finfo(own.dtype).tiny)  # of a dead input, 0
        levels = LevelGrid.uniform(self.scale[at], self.offset[at], len(own), self.grid.codes)
        chosen = choose(values - left / sizes[:, None], values, own / sizes, levels)
        self.codes[part] = levels.levels[chosen.codes]
        return chosen.values

    def result(self, known: ScaleCodes) -> QuantizedMatrix:
        """Return what has been found; known: what says the row scales."""
        coded = [
            None if new is None else new.T.contiguous().to(dtype)
            for new, dtype in ((self.scale_codes, torch.uint8), (self.offset_codes, torch.int8))
        ]
        held = ScaleCodes(known.row_scale, coded[0], coded[1], known.bits)
        return QuantizedMatrix(self.codes.T.contiguous().to(torch.int8), held)
