"""Trained bottlenecks: a linear one finds the principal subspace, a bent one what bends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.methods.autoencoder import Bottleneck, autoencoder, trained
from spectrim.statistics import Statistics

RANK = 3


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
    found, part = trained(random_start(8, 10), x, weight, steps=3000, linear=True)
    y = x @ weight.T
    _, _, principal = torch.linalg.svd(y, full_matrices=False)
    basis = torch.linalg.qr(found.decoder).Q
    angles = torch.linalg.svdvals(principal[:RANK] @ basis)
    assert float(angles.min()) > 0.99, "cosines of the angles between the two subspaces"
    assert part < 0.5
    assert torch.equal(found.slope, torch.ones(RANK)) and not found.offset.any()


def test_training_never_leaves_more_error_than_the_start() -> None:
    x = inputs(400, 10)
    weight = torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
    u, s, vh = torch.linalg.svd(weight @ torch.linalg.cholesky(x.T @ x / 400))
    best = Bottleneck(
        u[:, :RANK].T @ weight, torch.zeros(RANK), torch.ones(RANK), u[:, :RANK].contiguous()
    )
    found, part = trained(best, x, weight)
    assert 0.8 < part <= 1.0, "a linear map of Gaussian inputs has nothing that bends"
    if part == 1.0:
        assert found is best


def test_a_bend_pays_where_inputs_bend() -> None:
    """Inputs on a bent line: one linear unit cannot follow them, one bent unit nearly can."""
    t = torch.linspace(-1, 1, 4000)[
        torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    ]
    x = torch.stack((t.clamp_min(0), t.clamp_max(0) * 0.2, torch.zeros(4000)), dim=1)
    moment = x.T @ x / len(x)
    statistics = Statistics(4000, None, moment, torch.eye(3), x)
    found = autoencoder(torch.eye(3), statistics)
    rank = int(found.ranks[0])
    start = Bottleneck(
        torch.eye(3)[:1] * 1.0, torch.zeros(1), torch.ones(1), torch.eye(3)[:, :1].contiguous()
    )
    _, bent = trained(start, x, torch.eye(3), steps=500)
    _, straight = trained(start, x, torch.eye(3), steps=500, linear=True)
    assert rank == 1 and bent < straight


def test_it_needs_sampled_inputs() -> None:
    statistics = Statistics(10, None, torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match="sampled inputs"):
        autoencoder(torch.eye(3), statistics)
