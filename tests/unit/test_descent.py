"""Codes and scales improved in turn: a smaller error, on the grid, with row scales as they were."""

from __future__ import annotations

import pytest
import torch

from spectrim.formats.packed.scales import Grid
from spectrim.rounding.descent import descended
from spectrim.rounding.gptq import gptq

GRIDS = [Grid(2, 32, False), Grid(3, 32, True), Grid(4, 0, False), Grid(3, 64, False)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_error_falls_and_the_codes_stay_on_the_grid(grid: Grid) -> None:
    drawn = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 80, generator=drawn)  # the last group is a short one
    read = torch.randn(200, 80, generator=drawn) @ torch.randn(80, 80, generator=drawn)
    moment = read.T @ read / len(read)
    rounded = gptq(matrix, moment.double(), grid, torch.bfloat16)
    errors = []
    for cycles in (0, 1, 4):
        found = descended(matrix, moment.double(), rounded, grid, cycles)
        apart = found.dequantize(grid.group) - matrix
        errors.append(float(((apart @ moment) * apart).sum()))
        low, high = grid.codes
        assert found.codes.min() >= low and found.codes.max() <= high
        assert torch.equal(found.scale_codes.row_scale, rounded.scale_codes.row_scale)
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.95 * errors[0]


def test_inputs_that_are_never_there_do_no_harm() -> None:
    drawn = torch.Generator().manual_seed(1)
    matrix, moment = torch.randn(8, 64, generator=drawn), torch.eye(64).double()
    moment[:8] = 0
    grid = Grid(3, 32, False)
    rounded = gptq(matrix, torch.eye(64).double(), grid, torch.bfloat16)
    found = descended(matrix, moment, rounded, grid, 2)
    assert found.dequantize(grid.group).isfinite().all()
