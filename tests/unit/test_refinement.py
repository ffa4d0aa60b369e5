"""Solving the second factor again: at rest where nothing changed, better where something did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.cutting import refinement
from spectrim.cutting.refinement import _solve
from spectrim.formats import FactoredLinear, from_factors, low_rank_formats
from spectrim.methods import methods
from spectrim.walk.crossed import Crossed
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

OUT, IN, RANK, TOKENS = 12, 16, 6, 200


def drawn(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator) * torch.logspace(0, -1, size)


class Case:
    """A site, its statistics and its cut by the loss-aware method."""

    def __init__(self, format: str) -> None:
        self.x, flows = drawn(TOKENS, IN, 0), drawn(TOKENS, OUT, 1)
        self.matrix = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
        self.statistics = Statistics(
            TOKENS,
            input_moment=self.x.T @ self.x / TOKENS,
            gradient_moment=flows.T @ flows / TOKENS,
        )
        found = methods.get("loss_aware_svd")(
            self.matrix, self.statistics, damping=Damping(1e-4, refinement.DAMPING)
        )
        left, right = found.factors(RANK)
        self.module: FactoredLinear = from_factors(format, left, right, None, torch.float64)

    def solve(self, delivered: Tensor) -> None:
        x, y = self.x.double(), delivered.double()
        moments = Crossed((y.T @ y).float(), (x.T @ y).float(), TOKENS)
        _solve(self.module, self.statistics, moments)

    def error(self, delivered: Tensor) -> float:
        """Return E‖G^½ (W x - U V x')‖², written out."""
        metric = self.statistics.gradient_moment.double()
        metric = metric + refinement.DAMPING * metric.diagonal().mean() * torch.eye(OUT)
        missed = self.x.double() @ self.matrix.double().T - self.module(delivered.double())
        return float(((missed @ metric) * missed).sum() / TOKENS)


@pytest.fixture(params=low_rank_formats())
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_where_the_input_is_as_before_the_factor_does_not_move(case: Case) -> None:
    before = case.module.right().detach().clone()
    with torch.no_grad():
        case.solve(case.x)
    torch.testing.assert_close(case.module.right(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damage", ["noise", "lost", "scaled"])
def test_where_the_input_has_changed_the_weighted_error_falls(case: Case, damage: str) -> None:
    delivered = {
        "noise": case.x + 0.3 * drawn(TOKENS, IN, 3),
        "lost": case.x * (torch.arange(IN) < IN - 5),
        "scaled": 0.7 * case.x,
    }[damage]
    left = case.module.left().detach().clone()
    with torch.no_grad():
        before = case.error(delivered)
        case.solve(delivered)
        after = case.error(delivered)
    assert after < 0.99 * before
    assert torch.equal(case.module.left(), left), "the left factor is kept"


def test_few_tokens_do_not_carry_the_factor_away(case: Case) -> None:
    """Two tokens say little about 16 dimensions; the calibration moments hold the rest."""
    before = case.module.right().detach().clone()
    y = case.x[:2].double() + 0.1
    moments = Crossed((y.T @ y).float(), (case.x[:2].double().T @ y).float(), 2)
    with torch.no_grad():
        _solve(case.module, case.statistics, moments)
    moved = (case.module.right() - before).norm() / before.norm()
    assert 0 < moved < 1


def test_the_size_of_the_moments_does_not_count(case: Case) -> None:
    """Tokens are brought to one size where inputs are measured, those of the prior are not."""
    y = (0.7 * case.x + 0.1 * drawn(TOKENS, IN, 3)).double()
    own, across = (y.T @ y).float(), (case.x.double().T @ y).float()
    found = []
    before = case.module.right().detach().clone()
    for size in (1.0, 400.0):
        with torch.no_grad():
            case.module.right().copy_(before)
            _solve(case.module, case.statistics, Crossed(size * own, size * across, TOKENS))
        found.append(case.module.right().detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
