"""Trained bottlenecks: a linear one finds the principal subspace, which no bent one beats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.formats import make_format
from spectrim.methods import Decomposition
from spectrim.methods.autoencoder import BATCH, FEWEST, Bottleneck, autoencoder, trained
from spectrim.methods.loss_aware_svd import loss_aware_svd
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

RANK = 3
NONE = Damping(0.0, 0.0)


def inputs(tokens: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, size, generator=generator) * torch.logspace(0, -1, size)


def random_start(out: int, inner: int) -> Bottleneck:
    generator = torch.Generator().manual_seed(5)
    return Bottleneck(
        torch.randn(RANK, inner, generator=generator) / inner**0.5,
        torch.zeros(RANK),
        torch.ones(RANK),
        torch.randn(out, RANK, generator=generator) / RANK**0.5,
    )


def test_a_linear_one_reaches_the_principal_subspace_of_the_outputs() -> None:
    x = inputs(2000, 10)
    weight = torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
    y = x @ weight.T
    found, part = trained(random_start(8, 10), x, y, steps=4000, linear=True)
    _, _, principal = torch.linalg.svd(y, full_matrices=False)
    basis = torch.linalg.qr(found.decoder).Q
    angles = torch.linalg.svdvals(principal[:RANK] @ basis)
    assert float(angles.min()) > 0.99, "cosines of the angles between the two subspaces"
    assert part < 0.5
    assert torch.equal(found.slope, torch.ones(RANK)) and not found.offset.any()


def error(of: Bottleneck, x: Tensor, y: Tensor) -> float:
    return float((of(x) - y).square().sum(1).mean())


def test_what_is_left_of_the_error_is_so_on_other_inputs() -> None:
    weight = torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
    x, other = inputs(2000, 10), inputs(2000, 10, seed=1)
    start = random_start(8, 10)
    found, part = trained(start, x, x @ weight.T)
    left = error(found, other, other @ weight.T) / error(start, other, other @ weight.T)
    assert 0.2 < part < 0.95
    assert left == pytest.approx(part, rel=0.1)


def test_the_last_third_of_the_inputs_judges_and_teaches_nothing() -> None:
    x = inputs(1500, 10)
    y, start = (
        x @ torch.randn(10, 8, generator=torch.Generator().manual_seed(2)),
        random_start(8, 10),
    )
    found, part = trained(start, x, y)
    spoilt = y.clone()
    spoilt[1000:] = 100.0
    other, judged = trained(start, x, spoilt)
    assert torch.equal(other.encoder, found.encoder) and judged != part
    assert part == pytest.approx(
        error(found, x[1000:], y[1000:]) / error(start, x[1000:], y[1000:])
    )


def test_a_start_that_cannot_be_better_is_kept() -> None:
    x = inputs(2000, RANK)
    exact = Bottleneck(torch.eye(RANK), torch.zeros(RANK), torch.ones(RANK), torch.eye(RANK))
    found, part = trained(exact, x, x)
    assert found is exact and part == 1.0


@pytest.mark.parametrize("tokens", [1, 5, BATCH, FEWEST - 1])
def test_too_few_inputs_leave_the_linear_one(tokens: int) -> None:
    """As those of an expert that hardly any of the sampled tokens came to."""
    many, weight = inputs(2000, 10), torch.randn(12, 10, generator=torch.Generator().manual_seed(2))
    statistics = Statistics(2000, None, many.T @ many / 2000, torch.eye(12), many[:tokens])
    found = autoencoder(weight, statistics, damping=NONE)
    linear = loss_aware_svd(weight, statistics, damping=NONE)
    for at, rank in enumerate(found.ranks.tolist()):
        assert torch.equal(found.pieces[f"{rank}.slope"], torch.ones(rank))
        assert found.losses[at] == linear.losses[rank]
        dense = found.pieces[f"{rank}.decoder"] @ found.pieces[f"{rank}.encoder"]
        left, right = linear.factors(rank)
        torch.testing.assert_close(dense, left @ right, rtol=1e-3, atol=1e-4)


def measured(found: Decomposition, at: int, weight: Tensor, x: Tensor, flow: Tensor) -> float:
    """Return ½ E‖G^½ (W x - f(x))‖² of one cut as it is stored."""
    shape = (*weight.shape, int(found.ranks[at]))
    module = make_format("autoencoder", shape, found.pieces, None, torch.float32)
    missed = x @ weight.T - module(x).detach()
    return float(0.5 * ((missed @ flow) * missed).sum(1).mean())


def test_no_bend_beats_the_principal_subspace_even_where_inputs_bend() -> None:
    """All outputs lie in the span of the decoder, whatever bends before it; so losses fall by luck.

    (Bourlard and Kamp, 1988.)
    """
    t = torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = torch.stack((t.clamp_min(0), t.clamp_max(0), t.square()), dim=1)
    flow, weight = torch.diag(torch.tensor([4.0, 1.0, 0.25])), torch.eye(3)
    statistics = Statistics(4000, None, x.T @ x / len(x), flow, x)
    found = autoencoder(weight, statistics, damping=NONE)
    linear = loss_aware_svd(weight, statistics, damping=NONE)
    for at, rank in enumerate(found.ranks.tolist()):
        best = float(linear.losses[rank])
        assert 0.95 * best < float(found.losses[at]) <= best
        assert 0.999 * best < measured(found, at, weight, x, flow) < 1.05 * best


def test_losses_say_what_training_left_of_the_stored_map() -> None:
    """The moments are of other inputs than the samples, so that there is something to learn."""
    generator = torch.Generator().manual_seed(3)
    weight, flows = torch.randn(12, 10, generator=generator), inputs(100, 12, seed=4)
    flow, (x, other) = flows.T @ flows / 100, (inputs(3000, 10), inputs(3000, 10, seed=1))
    statistics = Statistics(3000, None, x.flip(1).T @ x.flip(1) / 3000, flow, x)
    found = autoencoder(weight, statistics, damping=NONE)
    linear = loss_aware_svd(weight, statistics, damping=NONE)
    for at, rank in enumerate(found.ranks.tolist()):
        left, right = linear.factors(rank)
        missed = other @ (weight - left @ right).T
        before = float(0.5 * ((missed @ flow) * missed).sum(1).mean())
        part = float(found.losses[at] / linear.losses[rank])
        assert part < 0.99
        assert measured(found, at, weight, other, flow) == pytest.approx(part * before, rel=0.1)


def test_a_width_that_is_no_better_than_a_smaller_one_is_left_out() -> None:
    """Nothing reaches the loss, so that the smallest width loses as little as any."""
    x = inputs(2000, 10)
    statistics = Statistics(2000, None, x.T @ x / 2000, torch.zeros(12, 12), x)
    found = autoencoder(torch.ones(12, 10), statistics)
    assert found.ranks.tolist() == [1] and found.losses.tolist() == [0.0]
    assert {key.partition(".")[0] for key in found.pieces} == {"1"}


def test_a_width_that_was_not_trained_is_refused() -> None:
    x = inputs(2000, 10)
    statistics = Statistics(2000, None, x.T @ x / 2000, torch.eye(12), x)
    found = autoencoder(torch.randn(12, 10, generator=torch.Generator().manual_seed(2)), statistics)
    known = ", ".join(str(rank) for rank in found.ranks.tolist())
    with pytest.raises(SpectrimError, match=f"rank 9 is asked for.* have {known}; change the rank"):
        make_format("autoencoder", (12, 10, 9), found.pieces, None, torch.float32)


def test_it_needs_sampled_inputs() -> None:
    statistics = Statistics(10, None, torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match="sampled inputs"):
        autoencoder(torch.eye(3), statistics)
