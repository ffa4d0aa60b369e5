"""A packed matrix with learnt codes, made dense once a pass: the numbers of the slower way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid
from spectrim.healing.learned_codes import LearnedMatrix, settle
from spectrim.healing.rounded_matrix import RoundedMatrix, learn_rounding
from spectrim.rounding.nearest import nearest

ROWS = 24
GRIDS = (
    (Grid(2, 32, False), 64),
    (Grid(3, 32, True), 72),  # a short last group
    (Grid(4, 0, False), 40),  # a row is a group
)


def packed(grid: Grid, columns: int) -> PackedMatrix:
    matrix = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(0))
    found = nearest(matrix, torch.ones(columns), grid, torch.float32)
    held = PackedMatrix(ROWS, columns, grid)
    held.take({key.removeprefix("m."): piece for key, piece in found.pieces("m").items()})
    return held


@pytest.mark.parametrize(("grid", "columns"), GRIDS)
def test_product_and_gradients_are_those_of_learned_codes(grid: Grid, columns: int) -> None:
    held = packed(grid, columns)
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(5, columns, generator=generator), torch.randn(5, ROWS)
    shift = torch.randn(ROWS, columns, generator=generator)
    found = []
    for made in (RoundedMatrix(held), LearnedMatrix(held, codes=True)):
        assert made.latent is not None
        made.latent.data += shift
        y = made.product(x)
        (y * target).sum().backward()
        gradients = {name: one.grad for name, one in made.named_parameters()}
        found.append({"y": y.detach(), **gradients})
    assert found[0].keys() == found[1].keys() >= {"scale", "latent"}
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("grid", "columns"), GRIDS)
def test_made_ready_and_packed_again_nothing_has_changed(grid: Grid, columns: int) -> None:
    held = packed(grid, columns)
    block = learn_rounding(nn.Sequential(held).eval())
    assert type(block[0]) is RoundedMatrix and not block[0].training
    after = settle(block)[0].state_dict()
    assert after.keys() == held.state_dict().keys()
    assert all(torch.equal(one, held.state_dict()[key]) for key, one in after.items())


@pytest.mark.parametrize(("grid", "columns"), GRIDS)
def test_codes_lean_towards_the_weights_and_stay(grid: Grid, columns: int) -> None:
    held = packed(grid, columns)
    wanted = held.dense().detach() + 0.3 * held._spread(held.scales().detach())
    made = RoundedMatrix(held, wanted)
    low, high = grid.codes
    inner = (held.codes() > low) & (held.codes() < high)
    moved = (made.latent.detach() - held.codes())[inner]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.3), rtol=0, atol=1e-3)
    assert torch.equal(RoundedMatrix(held, 100 * wanted).codes(), held.codes())
