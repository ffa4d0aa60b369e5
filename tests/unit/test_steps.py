"""Steps and offsets in eight bits each: what they can say, and how little they lose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrim.formats._rounding import Grid, nearest
from spectrim.formats._steps import offset_code, offsets, scale_code, scales, units

COLUMNS, GROUP = 128, 32
BITS = (2, 3, 4, 8)


def written(matrix: Tensor, grid: Grid, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return nearest(matrix, torch.ones(matrix.shape[1]), grid, dtype).written_out(grid.group)


@given(
    bits=st.sampled_from(BITS), symmetric=st.booleans(), seed=st.integers(0, 999),
    size=st.sampled_from((1e-4, 1.0, 300.0)), spread=st.sampled_from((0.0, 1.0)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_is_rounded_once_stays_as_it_is(
    bits: int, symmetric: bool, seed: int, size: float, spread: float
) -> None:
    """Codes name what was meant: none is a step beside it."""
    generator = torch.Generator().manual_seed(seed)
    largest = torch.rand(6, 4, generator=generator) + 0.1
    unit = units(size * largest.amax(1, keepdim=True), torch.bfloat16)
    code = scale_code(size * largest, unit.float())
    scale = scales(unit, code.to(torch.uint8))
    assert torch.equal(scale_code(scale, unit.float()), code)
    assert ((scale - size * largest).abs() <= 0.51 * unit.float()).all()
    wanted = scale * spread * torch.randn(6, 4, generator=generator)
    shift = offset_code(wanted, scale, bits)
    held = offsets(scale, shift.to(torch.int8), bits)
    assert torch.equal(offset_code(held, scale, bits), shift)
    within = shift.abs() < 127
    assert ((held - wanted).abs() <= 0.51 * scale * 2**bits / 128)[within].all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_lose_next_to_nothing(bits: int, symmetric: bool) -> None:
    """Against steps as they come (one group a row, in float32), with the same numbers."""
    matrix = torch.randn(48, COLUMNS, generator=torch.Generator().manual_seed(0))
    exact = written(matrix.reshape(-1, GROUP), Grid(bits, 0, symmetric), torch.float32)
    found = written(matrix, Grid(bits, GROUP, symmetric))
    errors = [float((one.reshape(48, -1) - matrix).norm()) for one in (exact, found)]
    assert errors[1] < 1.02 * errors[0]


@pytest.mark.parametrize("bits", BITS)
def test_a_group_of_one_value_is_met(bits: int) -> None:
    """An offset of eight bits reaches only so many steps, so the step has to grow with it."""
    matrix = torch.randn(4, COLUMNS, generator=torch.Generator().manual_seed(0))
    matrix[0, :GROUP] = 3.0
    matrix[1, :GROUP] = -0.02
    matrix[2] = 0.0
    found = written(matrix, Grid(bits, GROUP, False))
    torch.testing.assert_close(found[0, :GROUP], matrix[0, :GROUP], rtol=0.02, atol=0.0)
    torch.testing.assert_close(found[1, :GROUP], matrix[1, :GROUP], rtol=0.2, atol=0.0)
    assert not found[2].any()


@pytest.mark.parametrize("bits", BITS)
def test_all_numbers_on_one_side_cost_at_most_some_steps_more(bits: int) -> None:
    matrix = 1 + torch.rand(16, COLUMNS, generator=torch.Generator().manual_seed(0))
    error = (written(matrix, Grid(bits, GROUP, False)) - matrix).square().mean().sqrt()
    step = 1 / 2**bits
    assert error < 1.7 * step / 12**0.5
