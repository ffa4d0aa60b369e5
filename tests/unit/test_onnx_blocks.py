"""Packed matrices in ONNX Runtime's layout stand for what they stood for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

pytest.importorskip("onnx_ir", reason="pip install 'spectrim[export]'")

from spectrim.exporters.onnx_graph.blocks import COPIES, Blocks, Layout, laid_out, layout
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid
from spectrim.rounding.nearest import nearest

GRIDS = [
    Grid(bits, group, even) for bits in (2, 3, 4, 8) for group in (0, 32) for even in (True, False)
]


def made(rows: int, columns: int, grid: Grid) -> PackedMatrix:
    """Return a random matrix whose groups lie off the middle, as offsets are for."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, columns, generator=generator)
    values += 0.4 * torch.randn(rows, 1, generator=generator)
    matrix = PackedMatrix(rows, columns, grid).to(torch.bfloat16)
    found = nearest(values, torch.ones(columns), grid, torch.bfloat16).pieces("it")
    matrix.take({name.removeprefix("it."): piece for name, piece in found.items()})
    return matrix


def codes_of(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return codes by the operator's own words: packed along the inputs, low bits first."""
    places = torch.arange(0, 8, bits)
    each = packed.to(torch.int64)[..., None] >> places & (1 << bits) - 1
    return each.flatten(-2).flatten(1)[:, :count]


def dequantized(kind: Layout, blocks: Blocks) -> Tensor:
    """Return (code - zero point) scale [rows, columns], and what means add upon their blocks."""
    codes = codes_of(blocks.codes, kind.bits, kind.all_blocks * kind.size)
    zero = torch.full(blocks.scales.shape, 1 << kind.bits - 1)
    if blocks.zeros is not None:
        zero = codes_of(blocks.zeros[:, None], kind.bits, kind.all_blocks)
    both = (zero, blocks.scales.float())
    zero, scale = (one.repeat_interleave(kind.size, 1) for one in both)
    whole = ((codes - zero) * scale)[:, : kind.columns]
    if not kind.means:
        return whole
    inputs = kind.blocks * kind.size
    units = torch.tensor(COPIES[kind.bits])[:, None] / kind.size
    rest = (whole[:, inputs:].unflatten(1, (-1, kind.blocks)) * units).sum(1)
    return (whole[:, :inputs] + rest.repeat_interleave(kind.size, 1))[:, : kind.inputs]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("columns", [96, 80])
@torch.no_grad()
def test_blocks_stand_for_the_matrix(grid: Grid, columns: int) -> None:
    matrix = made(24, columns, grid)
    kind = layout(matrix)
    assert kind is not None
    assert kind.zeros is not grid.symmetric
    found = dequantized(kind, laid_out(matrix, kind))
    exact = copy.deepcopy(matrix).float()  # no scale, offset or row is rounded to bf16
    step = exact.scales().max(1, keepdim=True).values
    # three codes of 2 bits are the coarsest
    assert ((found - exact.dense()).abs() <= step / 50 + 1e-6).all()


def test_whole_offsets_and_symmetric_grids_need_no_means() -> None:
    matrix = made(16, 64, Grid(4, 32, False))
    assert matrix.offset_code is not None
    first = layout(matrix)
    assert first is not None and first.means
    matrix.offset_code.copy_((matrix.offset_code // 8).clamp(-4, 4) * 8)  # whole steps
    assert layout(matrix) == Layout(4, 32, 64, zeros=True, means=False)
    even = layout(made(16, 64, Grid(3, 32, True)))
    assert even == Layout(4, 32, 64, zeros=False, means=False)


def test_groups_of_no_known_length_have_no_layout() -> None:
    assert layout(made(8, 96, Grid(4, 48, True))) is None
