"""What bits are estimated to cost, beside what they cost by GPTQ for real."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim.cutting.bit_estimates import estimated_losses
from spectrim.formats import FactoredLinear, formats
from spectrim.formats.packed.scales import Grid
from spectrim.rounding.few_bits import InverseRoots, Rounding, matrix_of, quantized_pieces
from spectrim.walk.moments import Damping, expected_loss, of_all_text
from spectrim.walk.statistics import Statistics

GRIDS = [Grid(bits, 32, symmetric=False) for bits in (2, 3, 4, 8)]
OUT, IN, RANK = 144, 96, 48


def moment(size: int, seed: int) -> Tensor:
    """Return a second moment whose channels differ and hang together."""
    drawn = torch.Generator().manual_seed(seed)
    mixed = torch.randn(size, size, generator=drawn) / size**0.5 + torch.eye(size)
    rows = torch.randn(800, size, generator=drawn) @ mixed
    rows *= torch.randn(size, generator=drawn).exp()
    return rows.T @ rows / 800


def known() -> Statistics:
    return Statistics(tokens=800, input_moment=moment(IN, 1), gradient_moment=moment(OUT, 2))


def maps() -> dict[str, nn.Module]:
    """Return a dense map, rows of different widths, and the same cut in two formats."""
    drawn = torch.Generator().manual_seed(0)
    dense = nn.Linear(IN, OUT, bias=False)
    wide = torch.randn(OUT, 1, generator=drawn).exp()
    left = torch.randn(OUT, RANK, generator=drawn) * wide
    right = torch.randn(RANK, IN, generator=drawn)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(OUT, IN, generator=drawn) * wide)
        made: dict[str, nn.Module] = {"dense": dense}
        for name in ("low_rank", "pivoted"):
            module: FactoredLinear = formats.get(name)(IN, OUT, RANK, False)
            module.take({"left": left, "right": right})
            made[name] = module
    return made


def measured(name: str, module: nn.Module, grid: Grid, found: Statistics) -> float:
    """Return what GPTQ loses for real."""
    assert found.input_moment is not None
    shape = {"in_features": IN, "out_features": OUT, "rank": RANK, "bias": False}
    stored_grid = {name: value for name, value in vars(grid).items() if name != "trellis"}
    packed = formats.get(f"quantized_{name}").from_shape({**shape, **stored_grid})
    with torch.no_grad():
        rounding = Rounding(grid, torch.float32)
        packed.take(quantized_pieces(module, found.input_moment, rounding))
        return expected_loss(matrix_of(module), matrix_of(packed), found, Damping())


@pytest.mark.parametrize(("name", "factor"), [("dense", 1.6), ("low_rank", 3.0), ("pivoted", 2.0)])
def test_estimates_are_near_what_gptq_loses(name: str, factor: float) -> None:
    found, module = known(), maps()[name]
    estimates = estimated_losses(module, found, GRIDS, InverseRoots())
    losses = torch.tensor([measured(name, module, grid, found) for grid in GRIDS])
    assert (estimates / losses).log().abs().max() < torch.tensor(factor).log(), estimates / losses


def test_estimates_are_of_text_that_did_not_choose() -> None:
    """With few tokens GPTQ flatters itself, and the estimates are as much above that."""
    x = torch.randn(200, IN, generator=torch.Generator().manual_seed(3))
    flows = moment(OUT, 2)
    even = Statistics(100, None, x[::2].T @ x[::2] / 100, flows)
    found = Statistics(200, None, x.T @ x / 200, flows, even=even)
    odd, module, grid = found.odd(), maps()["dense"], GRIDS[1]
    assert odd is not None and even.input_moment is not None
    rounded = Rounding(grid, torch.float32)(matrix_of(module), even.input_moment)
    held = rounded.dequantize(grid.group)
    own, other = (expected_loss(matrix_of(module), held, one, Damping()) for one in (even, odd))
    (estimate,) = estimated_losses(module, found, [grid], InverseRoots())
    (fitted,) = estimated_losses(module, even, [grid], InverseRoots())
    assert other > 1.5 * own, "which is what a price on the same text leaves out"
    assert float(estimate / fitted) == pytest.approx(of_all_text(own, other) / own, rel=0.2)


def test_what_no_token_reaches_costs_nothing() -> None:
    never = Statistics(tokens=0)
    assert estimated_losses(maps()["dense"], never, GRIDS, InverseRoots()).tolist() == [0.0] * 4
