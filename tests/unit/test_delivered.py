"""What maps are rounded for: their own matrix, and where inputs have changed one nearer to W x."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.rounding import delivered
from spectrim.rounding.delivered import aimed
from spectrim.walk.crossed import Crossed
from spectrim.walk.moments import cholesky, damped

OUT, IN, TOKENS_READ = 12, 16, 400


def crossed(x: Tensor, y: Tensor) -> tuple[Crossed, Tensor]:
    moments = Crossed(y.T @ y, x.T @ y, len(x))
    return moments, cholesky(damped(moments.own / len(x), delivered.DAMPING))


def test_a_map_moves_only_where_its_inputs_have_changed() -> None:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS_READ, IN, generator=drawn)
    matrix = torch.randn(OUT, IN, generator=drawn)
    torch.testing.assert_close(aimed(matrix, matrix, *crossed(x, x)), matrix)
    y = x @ (torch.eye(IN) + 0.2 * torch.randn(IN, IN, generator=drawn))
    moved = aimed(matrix, matrix, *crossed(x, y))
    before = (x @ matrix.T - y @ matrix.T).square().mean()
    after = (x @ matrix.T - y @ moved.T).square().mean()
    left = (1 - delivered.SHIFT) ** 2  # of the squared error, as the change is a linear one
    assert 0.9 * left < after / before < 1.2 * left


def test_columns_of_fewer_inputs_make_up_for_those_that_are_gone() -> None:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS_READ, 6, generator=drawn) @ torch.randn(6, IN, generator=drawn)
    matrix = torch.randn(OUT, IN, generator=drawn)
    kept = x[:, :10]  # which say all that there is
    moved = aimed(matrix[:, :10], matrix, *crossed(x, kept))
    missed = (x @ matrix.T - kept @ matrix[:, :10].T).square().mean()
    assert (x @ matrix.T - kept @ moved.T).square().mean() < 0.5 * missed
