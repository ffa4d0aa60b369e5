"""GPTQ: rounding column by column, what is left of the row making up for each error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.formats.packed.steps import Grid
from spectrim.rounding.nearest import (
    Rounded,
    Steps,
    coded,
    in_groups,
    nearest,
    rounded,
    row_units,
    spoken,
    steps,
)
from spectrim.walk.moments import inverse_root

BLOCK = 128  # columns after which the errors reach the rest; a multiple of every group
ROOM = 1.25  # of steps: what earlier errors leave to a group may make it wider than it came
Step = Callable[[int], tuple[Tensor, Tensor]]


def gptq(
    matrix: Float[Tensor, "rows columns"],
    inputs: Float[Tensor, "columns columns"],
    grid: Grid,
    dtype: torch.dtype,
    *,
    by_size: bool = False,
    root: Float[Tensor, "columns columns"] | None = None,
) -> Rounded:
    """Return a matrix rounded as GPTQ does it (2210.17323, algorithm 1), in float32.

    With H⁻¹ = Uᵀ U the error e of column j costs (e / U_jj)² once the columns behind it have made
    up for it; these weights choose the range of a group, which is measured where the group begins,
    on what the errors before it have left.
    inputs: H, damped, so that it can be inverted. dtype: of the units of steps.
    by_size: go from the input with the largest H_jj to that with the smallest, with groups and
        ranges of the matrix as it comes ("static groups").
    root: U, where it is known from another matrix with the same inputs.

    Raises:
        ArithmeticError: H is far from positive semidefinite.
    """
    if by_size:
        return _by_size(matrix, inputs, grid, dtype)
    root = inverse_root(inputs.double()).float() if root is None else root
    size = grid.group or matrix.shape[1]
    weights = root.diagonal().square().reciprocal()
    left = matrix.float().T.contiguous()  # [columns, rows]
    numbers = torch.zeros_like(left, dtype=torch.int8)
    unit = row_units(in_groups(matrix.float(), size), grid, dtype, ROOM)
    found: list[Steps] = []

    def step(at: int) -> tuple[Tensor, Tensor]:
        if at % size == 0:
            group, counted = left[at : at + size].T, weights[at : at + size][None]
            found.append(steps(group, counted, grid, dtype if unit is None else unit))
        return found[-1].scale[:, 0], found[-1].offset[:, 0]

    _sweep(left, root, numbers, grid, step)
    return Rounded(numbers.T.contiguous(), coded(found, unit, grid, dtype))


def _by_size(matrix: Tensor, inputs: Tensor, grid: Grid, dtype: torch.dtype) -> Rounded:
    sizes = inputs.diagonal()
    order = sizes.argsort(descending=True, stable=True)
    root = inverse_root(inputs[order][:, order].double()).float()
    known = nearest(matrix, sizes, grid, dtype)
    scale, offset = known.coded.values()
    group = order // (grid.group or matrix.shape[1])
    left = matrix.float().T[order].contiguous()
    numbers = torch.zeros_like(left, dtype=torch.int8)
    _sweep(left, root, numbers, grid, lambda at: (scale[:, group[at]], offset[:, group[at]]))
    back = torch.empty_like(numbers)
    back[order] = numbers
    return Rounded(back.T.contiguous(), known.coded)


def _sweep(
    left: Float[Tensor, "columns rows"],
    root: Float[Tensor, "columns columns"],
    numbers: Tensor,
    grid: Grid,
    step: Step,
) -> None:
    """Round the columns, each a row of ``left``, in order; step: a column's steps and offsets."""
    for begin in range(0, len(left), BLOCK):
        end = min(begin + BLOCK, len(left))
        errors = torch.zeros_like(left[begin:end])
        for at in range(begin, end):
            scale, offset = step(at)
            whole = rounded(left[at], scale, offset, grid)
            numbers[at] = whole.to(torch.int8)
            errors[at - begin] = (left[at] - spoken(whole, scale, offset)) / root[at, at]
            left[at + 1 : end] -= torch.outer(root[at, at + 1 : end], errors[at - begin])
        left[end:] -= root[begin:end, end:].T @ errors
