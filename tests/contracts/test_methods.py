"""What every method of two factors promises beyond test_cuts.py, whatever it weighs with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.cutting.currency import currency_losses
from spectrim.methods import Decomposition, methods
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

NAMES = [name for name in methods.names() if methods.constant(name, "FORMAT") is None]
SHAPES = [(12, 9), (9, 12), (10, 10)]
NONE = Damping(0.0, 0.0)


def case(out: int, inner: int, seed: int = 0) -> tuple[Tensor, Statistics]:
    generator = torch.Generator().manual_seed(seed)

    def moment(size: int) -> Tensor:
        rows = torch.randn(4 * size, size, generator=generator) * torch.logspace(0, -1.5, size)
        return rows.T @ rows / len(rows)

    weight = torch.randn(out, inner, generator=generator)
    return weight, Statistics(100, input_moment=moment(inner), gradient_moment=moment(out))


def decompose(name: str, shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Decomposition]:
    weight, statistics = case(*shape, seed)
    found: Decomposition = methods.get(name)(weight, statistics, damping=NONE)
    return weight, found


def damage(weight: Tensor, replaced: Tensor, statistics: Statistics) -> float:
    """½ tr(Δᵀ G Δ A), written out in the plainest way."""
    assert statistics.input_moment is not None and statistics.gradient_moment is not None
    error = (weight - replaced).double()
    middle = error.T @ statistics.gradient_moment.double() @ error
    return float(0.5 * torch.trace(middle @ statistics.input_moment.double()))


def test_there_are_methods() -> None:
    assert {"truncated_svd", "whitened_svd", "loss_aware_svd"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_full_budget_leaves_the_map_unchanged(name: str, shape: tuple[int, int]) -> None:
    weight, found = decompose(name, shape)
    left, right = found.factors(min(shape))
    torch.testing.assert_close(left @ right, weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_never_rise_with_rank_and_end_at_nothing(name: str, shape: tuple[int, int]) -> None:
    _, found = decompose(name, shape)
    assert len(found.losses) == min(shape) + 1
    assert (found.losses.diff() <= 1e-6).all()
    assert found.losses[-1] <= 1e-5 * found.losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_cuts_are_prefixes_and_contiguous(name: str) -> None:
    _, found = decompose(name, (12, 9))
    left, right = found.factors(4)
    assert left.is_contiguous() and right.is_contiguous()
    assert torch.equal(left, found.left[:, :4]) and torch.equal(right, found.right[:4])


@pytest.mark.parametrize("name", NAMES)
def test_same_input_gives_same_bits(name: str) -> None:
    (_, one), (_, other) = decompose(name, (12, 9)), decompose(name, (12, 9))
    assert torch.equal(one.left, other.left) and torch.equal(one.losses, other.losses)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_common_currency_is_the_damage_written_out(name: str, shape: tuple[int, int]) -> None:
    weight, statistics = case(*shape)
    found: Decomposition = methods.get(name)(weight, statistics, damping=NONE)
    losses = currency_losses(found, weight, statistics, NONE)
    for rank in range(min(shape)):
        left, right = found.factors(rank)
        expected = damage(weight, left @ right, statistics)
        assert float(losses[rank]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    if found.in_nats:
        torch.testing.assert_close(found.losses, losses, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_no_method_predicts_less_damage_than_the_loss_aware_one(name: str, seed: int) -> None:
    weight, statistics = case(12, 9, seed)
    best: Decomposition = methods.get("loss_aware_svd")(weight, statistics, damping=NONE)
    found: Decomposition = methods.get(name)(weight, statistics, damping=NONE)
    losses = currency_losses(found, weight, statistics, NONE)
    assert (best.losses <= losses * 1.001 + 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_fewer_tokens_than_dimensions_are_survived(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, flows = torch.randn(3, 9, generator=generator), torch.randn(3, 12, generator=generator)
    statistics = Statistics(3, input_moment=rows.T @ rows, gradient_moment=flows.T @ flows)
    weight = torch.randn(12, 9, generator=generator)
    found: Decomposition = methods.get(name)(weight, statistics, damping=Damping())
    assert found.left.isfinite().all() and found.right.isfinite().all()
    torch.testing.assert_close(found.left @ found.right, weight, rtol=1e-2, atol=1e-2)
