"""A basis of experts against sums written out: exact at full rank, losses in each one's own A."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.methods import Decomposition
from spectrim.methods.expert_basis import expert_basis
from spectrim.methods.loss_aware_shared_basis import loss_aware_shared_basis
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

NONE = Damping(0.0, 0.0)
OUT, IN = 14, 10
ROLES = [f"expert{number}_gate_up" for number in range(3)]


def moment(size: int, generator: torch.Generator) -> Tensor:
    rows = torch.randn(4 * size, size, generator=generator) @ torch.randn(
        size, size, generator=generator
    )
    return rows.T @ rows / len(rows)


def case(*, alike: bool = False) -> tuple[dict[str, Tensor], dict[str, Statistics]]:
    generator = torch.Generator().manual_seed(3)
    weights = {role: torch.randn(OUT, IN, generator=generator) for role in ROLES}
    inputs = [moment(IN, generator) for _ in ROLES]
    return weights, {
        role: Statistics(tokens, None, inputs[0 if alike else place], moment(OUT, generator))
        for place, (role, tokens) in enumerate(zip(ROLES, (10, 200, 40), strict=True))
    }


def product(found: Decomposition, role: str, rank: int) -> Tensor:
    right = found.pieces[f"{ROLES[0]}.right"][:rank].double()
    return found.pieces[f"{role}.left"][:, :rank].double() @ right


def damage(found: Decomposition, rank: int) -> float:
    """Σ_e ½ tr(Δᵀ G Δ A), written out in the plainest way."""
    weights, statistics = case()
    total = 0.0
    for role, one in statistics.items():
        error = weights[role].double() - product(found, role, rank)
        middle = error.T @ one.gradient_moment.double() @ error
        total += float(0.5 * torch.trace(middle @ one.input_moment.double()))
    return total


def test_the_full_rank_is_exact() -> None:
    weights, statistics = case()
    found = expert_basis(weights, statistics, damping=NONE)
    for role, weight in weights.items():
        torch.testing.assert_close(product(found, role, IN).float(), weight, rtol=1e-4, atol=1e-4)
    assert found.losses[-1] <= 1e-6 * found.losses[0]


def test_losses_are_the_damage_in_the_metric_of_every_expert() -> None:
    found = expert_basis(*case(), damping=NONE)
    written = torch.tensor([damage(found, int(rank)) for rank in found.ranks])
    never_rising = written.flip(0).cummax(0).values.flip(0)
    torch.testing.assert_close(found.losses, never_rising, rtol=1e-3, atol=1e-4 * float(written[0]))
    assert found.in_nats and (found.losses.diff() <= 0).all()


def test_experts_that_read_alike_are_one_stack() -> None:
    one, other = expert_basis(*case(alike=True)), loss_aware_shared_basis(*case(alike=True))
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-3, atol=1e-5)


def test_an_expert_counts_by_its_tokens() -> None:
    """One that reads nearly everything has the basis nearly to itself."""
    weights, statistics = case(alike=False)
    for role, one in statistics.items():
        one.tokens = 10**6 if role == ROLES[1] else 1
    pooled = {role: Statistics(1, None, statistics[ROLES[1]].input_moment, one.gradient_moment)
              for role, one in statistics.items()}  # fmt: skip
    found = expert_basis(weights, statistics)
    alone = expert_basis(weights, pooled)
    for role in ROLES:
        torch.testing.assert_close(
            product(found, role, 4), product(alone, role, 4), rtol=1e-2, atol=1e-2
        )


def test_experts_that_the_loss_ignores_cost_nothing() -> None:
    weights, statistics = case()
    for role in ROLES[1:]:
        statistics[role].gradient_moment = torch.zeros(OUT, OUT)
    found = expert_basis(weights, statistics)
    assert found.losses[0] > 0
    statistics[ROLES[0]].gradient_moment = torch.zeros(OUT, OUT)
    assert not expert_basis(weights, statistics).losses.any()


def test_without_moments_it_says_what_it_needs() -> None:
    weights, statistics = case()
    statistics[ROLES[1]].input_moment = None
    with pytest.raises(ValueError, match="a basis of experts needs their input moments"):
        expert_basis(weights, statistics)
