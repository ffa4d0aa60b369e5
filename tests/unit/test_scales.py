"""Scales and offsets in eight bits each: what they can say, and how little they lose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrim.formats.packed.scales import (
    Grid,
    dequantize,
    offset_code,
    offsets,
    quantize,
    scale_code,
    scales,
)
from spectrim.rounding.nearest import SHRUNK, nearest

COLUMNS, GROUP = 128, 32
BITS = (2, 3, 4, 8)


def written(matrix: Tensor, grid: Grid, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return nearest(matrix, torch.ones(matrix.shape[1]), grid, dtype).dequantize(grid.group)


@given(
    bits=st.sampled_from(BITS), seed=st.integers(0, 999), spread=st.sampled_from((0.0, 1.0)),
    size=st.sampled_from((1e-4, 1.0, 300.0)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_codes_name_what_was_meant(
    bits: int, seed: int, spread: float, size: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    wanted = size * (torch.rand(6, 4, generator=generator) + 0.1)
    row_scale = wanted.amax(1, keepdim=True).to(dtype)
    code = scale_code(wanted, row_scale.float())
    scale = scales(row_scale, code.to(torch.uint8))
    assert scale.dtype == dtype and code.max() >= 254
    near = 0.52 / 255 + torch.finfo(dtype).eps
    assert ((scale.float() - wanted).abs() <= near * wanted.amax(1, keepdim=True)).all()
    meant = scale.float() * spread * torch.randn(6, 4, generator=generator)
    shift = offset_code(meant, scale.float(), bits)
    held = offsets(scale, shift.to(torch.int8), bits).float()
    assert torch.equal(offset_code(held, scale.float(), bits), shift)
    within = shift.abs() < 127
    missed = (held - meant).abs() - torch.finfo(dtype).eps * meant.abs()
    assert (missed <= 0.52 * scale.float() * 2**bits / 128)[within].all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_lose_next_to_nothing(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    """Against scales and offsets as they come, the range that costs least taken for both."""
    matrix = torch.randn(48, COLUMNS, generator=torch.Generator().manual_seed(0))
    groups = matrix.reshape(-1, GROUP)
    low, high = groups.aminmax(dim=1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    span = 2 ** (bits - 1) - 0.5
    if symmetric:
        middle, half, span = torch.zeros_like(low), torch.maximum(-low, high), float(most)
    best = torch.full_like(low, torch.inf)
    for part in SHRUNK:
        step = half * part / span
        shift = torch.zeros_like(step) if symmetric else middle + step / 2
        held = ((groups - shift) / step).round().clamp(least, most) * step + shift
        best = torch.minimum(best, (held - groups).square().sum(1, keepdim=True))
    error = (written(matrix, Grid(bits, GROUP, symmetric), dtype) - matrix).square().sum()
    # codes place a range to 1/128 of it, which eight bits feel
    assert error < (1.25 if bits == 8 and not symmetric else 1.03) * best.sum()


@pytest.mark.parametrize("bits", BITS)
def test_a_group_of_one_value_is_met(bits: int) -> None:
    """An offset of eight bits reaches only so many scales, so the scale has to grow with it."""
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


@pytest.mark.parametrize("bits", BITS)
def test_the_zero_point_is_minus_offset_over_scale(bits: int) -> None:
    grid = Grid(bits, GROUP, False)
    codes = torch.arange(grid.codes[0], grid.codes[1] + 1, dtype=torch.float64)
    scale, offset = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.07, dtype=torch.float64)
    values = dequantize(codes, scale, offset)
    torch.testing.assert_close(values, scale * (codes - -offset / scale))
    assert len(values) == 2**bits
    assert torch.equal(quantize(values + 0.49 * scale, scale, offset, grid.codes), codes)
    beyond = torch.tensor([-99.0, 99.0], dtype=torch.float64)
    assert tuple(quantize(beyond, scale, offset, grid.codes).tolist()) == grid.codes
