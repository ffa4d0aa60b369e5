"""GPTQ: rounding column by column, what is left of the row making up for each error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from spectrim.formats.packed.scales import Grid
from spectrim.rounding.column_choice import LevelGrid, choose
from spectrim.rounding.nearest import (
    GroupScale,
    QuantizedMatrix,
    ScaleCodes,
    group_scale,
    in_groups,
    nearest,
    row_scales,
)
from spectrim.walk.moments import inverse_root

BLOCK = 128  # columns after which the errors reach the rest, where there are no groups
ROOM = 1.25  # of scales: what earlier errors leave to a group may make it wider than it came
Levels = Callable[[slice], LevelGrid]
"""From some columns to the values that their numbers can get."""


def gptq(
    matrix: Float[Tensor, "rows columns"],
    inputs: Float[Tensor, "columns columns"],
    grid: Grid,
    dtype: torch.dtype,
    *,
    act_order: bool = False,
    root: Float[Tensor, "columns columns"] | None = None,
) -> QuantizedMatrix:
    """Return a matrix rounded as GPTQ does it (2210.17323, algorithm 1), in float32.

    With H⁻¹ = Uᵀ U the error e of column j costs (e / U_jj)² once the columns behind it have made
    up for it; these weights choose the range of a group, which is measured where the group begins,
    on what the errors before it have left.
    inputs: H, damped, so that it can be inverted. dtype: of the row scales.
    act_order: go from the input with the largest H_jj to that with the smallest, with groups and
        ranges of the matrix as it comes ("act-order" with "static groups" of GPTQ's code).
    root: U, where it is known from another matrix with the same inputs.

    Raises:
        ArithmeticError: H is far from positive semidefinite.
    """
    if act_order:
        return _by_activation(matrix, inputs, grid, dtype)
    root = inverse_root(inputs.double()).float() if root is None else root
    return _by_column(matrix, root, grid, dtype)


def _by_column(
    matrix: Float[Tensor, "rows columns"],
    root: Float[Tensor, "columns columns"],
    grid: Grid,
    dtype: torch.dtype,
) -> QuantizedMatrix:
    size = grid.group or matrix.shape[1]
    weights = root.diagonal().square().reciprocal()
    left = matrix.float().T.contiguous()  # [columns, rows]
    row_scale = row_scales(in_groups(matrix.float(), size), grid, dtype, ROOM)
    found: list[GroupScale] = []

    def measured(some: slice) -> LevelGrid:
        at = some.start
        if at % size == 0:
            group, counted = left[at : at + size].T, weights[at : at + size][None]
            stored = dtype if row_scale is None else row_scale
            found.append(group_scale(group, counted, grid, stored))
        scale, offset = found[-1].scale[:, 0], found[-1].offset[:, 0]
        return LevelGrid.uniform(scale, offset, some.stop - at, grid.codes)

    codes = _sweep(left, root, grid, measured)
    coded = ScaleCodes.of_groups(found, row_scale, grid, dtype)
    return QuantizedMatrix(codes.T.contiguous(), coded)


def _by_activation(
    matrix: Float[Tensor, "rows columns"],
    inputs: Float[Tensor, "columns columns"],
    grid: Grid,
    dtype: torch.dtype,
) -> QuantizedMatrix:
    sizes = inputs.diagonal()
    order = sizes.argsort(descending=True, stable=True)
    root = inverse_root(inputs[order][:, order].double()).float()
    known = nearest(matrix, sizes, grid, dtype)
    scale, offset = known.scale_codes.values()
    group = order // (grid.group or matrix.shape[1])
    left = matrix.float().T[order].contiguous()
    levels = torch.arange(grid.lowest, -grid.lowest, dtype=torch.float32)

    def known_levels(some: slice) -> LevelGrid:
        own = group[some]
        return LevelGrid(scale[:, own].T.float(), offset[:, own].T.float(), levels)

    codes = _sweep(left, root, grid, known_levels)
    back = torch.empty_like(codes)
    back[order] = codes
    return QuantizedMatrix(back.T.contiguous(), known.scale_codes)


def _sweep(
    left: Float[Tensor, "columns rows"],
    root: Float[Tensor, "columns columns"],
    grid: Grid,
    levels_of: Levels,
) -> Int8[Tensor, "columns rows"]:
    """Return the codes of the columns, each a row of ``left``, rounded in order.

    left: gets what each column's errors leave to those behind it. root: U.
    """
    codes = torch.zeros_like(left, dtype=torch.int8)
    size = grid.group or BLOCK
    for begin in range(0, len(left), size):
        some = slice(begin, min(begin + size, len(left)))
        own = root[some, some]
        pivots = own.diagonal()[:, None]
        # an error of the weights is minus the change of their values
        chosen = choose(left[some], None, -own / pivots, levels_of(some))
        codes[some] = (chosen.codes + grid.lowest).to(torch.int8)
        left[some.stop :] += root[some, some.stop :].T @ (chosen.changes / pivots)
    return codes
