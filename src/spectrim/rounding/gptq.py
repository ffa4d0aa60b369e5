"""GPTQ: rounding column by column, what is left of the row making up for each error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from spectrim.formats.packed.scales import Grid, dequantize, quantize
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

BLOCK = 128  # columns after which the errors reach the rest; a multiple of every group
ROOM = 1.25  # of scales: what earlier errors leave to a group may make it wider than it came
ColumnScale = Callable[[int], tuple[Tensor, Tensor]]
"""From a column to the scale and the offset of every row there, float32 [rows] each."""


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

    def measured(at: int) -> tuple[Tensor, Tensor]:
        if at % size == 0:
            group, counted = left[at : at + size].T, weights[at : at + size][None]
            stored = dtype if row_scale is None else row_scale
            found.append(group_scale(group, counted, grid, stored))
        return found[-1].scale[:, 0], found[-1].offset[:, 0]

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
    codes = _sweep(left, root, grid, lambda at: (scale[:, group[at]], offset[:, group[at]]))
    back = torch.empty_like(codes)
    back[order] = codes
    return QuantizedMatrix(back.T.contiguous(), known.scale_codes)


def _sweep(
    left: Float[Tensor, "columns rows"],
    root: Float[Tensor, "columns columns"],
    grid: Grid,
    scale_at: ColumnScale,
) -> Int8[Tensor, "columns rows"]:
    """Return the codes of the columns, each a row of ``left``, rounded in order.

    left: gets what each column's errors leave to those behind it. root: U.
    """
    codes = torch.zeros_like(left, dtype=torch.int8)
    for begin in range(0, len(left), BLOCK):
        end = min(begin + BLOCK, len(left))
        errors = torch.zeros_like(left[begin:end])
        for at in range(begin, end):
            scale, offset = scale_at(at)
            found = quantize(left[at], scale, offset, grid.codes)
            codes[at] = found.to(torch.int8)
            errors[at - begin] = (left[at] - dequantize(found, scale, offset)) / root[at, at]
            left[at + 1 : end] -= torch.outer(root[at, at + 1 : end], errors[at - begin])
        left[end:] -= root[begin:end, end:].T @ errors
    return codes
