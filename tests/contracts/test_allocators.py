"""What every allocator promises, and that the global one is as good as an exact search."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from spectrim.allocators import Measure, allocators
from spectrim.curve import Curve
from spectrim.errors import SpectrimError
from spectrim.model.sites import Site

NAMES = allocators.names()
MEASURING = [name for name in NAMES if allocators.constant(name, "MEASURES")]
DENSE_LOSS = 3.0


def curves(seed: int, count: int = 5, cuts: int = 6) -> list[Curve]:
    """Curves with falling losses and rising, concave sizes, as pivoted storage has them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        ranks = torch.arange(1, cuts + 1)
        sizes = (ranks * (3 * cuts - ranks)).double() * float(1 + index % 3)
        losses = torch.rand(cuts, generator=generator).sort(descending=True).values
        losses = losses - losses[-1]
        made.append(Curve((Site(f"s{index}", index, "q", cuts, 2 * cuts),), ranks, sizes, losses))
    return made


def spent(found: list[Curve], chosen: list[int]) -> float:
    return sum(float(curve.sizes[at]) for curve, at in zip(found, chosen, strict=True))


def lost(found: list[Curve], chosen: list[int]) -> float:
    return sum(float(curve.losses[at]) for curve, at in zip(found, chosen, strict=True))


def truth(found: list[Curve]) -> Measure:
    """What measuring says: the dense loss, and what the curves say times what no rule knows."""
    generator = torch.Generator().manual_seed(7)
    scales = (0.3 + 2 * torch.rand(len(found), generator=generator)).tolist()

    def measure(chosen: list[int]) -> float:
        cuts = zip(scales, found, chosen, strict=True)
        return DENSE_LOSS + sum(scale * float(curve.losses[at]) for scale, curve, at in cuts)

    return measure


def choice(name: str, found: list[Curve], budget: float) -> list[int]:
    return allocators.get(name)(found, budget, truth(found))


def test_there_are_allocators() -> None:
    assert {"uniform", "global"} <= set(NAMES)


@pytest.mark.parametrize("name", MEASURING)
def test_a_rule_that_measures_says_that_it_cannot(name: str) -> None:
    told = f"^allocator '{name}' measures true losses, .*such as 'global'$"
    with pytest.raises(SpectrimError, match=told):
        allocators.get(name)(curves(0), 100.0)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(MEASURING)))
def test_a_rule_that_does_not_say_that_it_measures_does_not(name: str) -> None:
    found = curves(0)
    assert allocators.get(name)(found, 150.0) == choice(name, found, 150.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(5))
def test_never_above_budget(name: str, part: float, seed: int) -> None:
    found = curves(seed)
    budget = part * spent(found, [len(curve.sizes) - 1 for curve in found])
    chosen = choice(name, found, budget)
    assert len(chosen) == len(found)
    assert spent(found, chosen) <= budget


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_never_above_a_small_budget(name: str, part: float, seed: int) -> None:
    found = curves(seed, cuts=48)
    budget = part * spent(found, [len(curve.sizes) - 1 for curve in found])
    assert spent(found, [0] * len(found)) < budget
    assert spent(found, choice(name, found, budget)) <= budget


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [60.0, 62.0, 75.0, 90.0, 120.0, 199.0])
def test_never_above_budget_although_one_site_cannot_be_small(name: str, budget: float) -> None:
    sizes = [[50, 100], list(range(10, 101, 10))]
    found = [
        Curve(
            (Site(f"s{index}", index, "q", 10, 10),),
            torch.arange(1, len(one) + 1),
            torch.tensor(one).double(),
            torch.linspace(1, 0, len(one)),
        )
        for index, one in enumerate(sizes)
    ]
    assert spent(found, choice(name, found, budget)) <= budget


@pytest.mark.parametrize("name", NAMES)
def test_full_budget_keeps_what_could_be_smaller_for_nothing(name: str) -> None:
    found = [
        Curve(curve.sites, curve.ranks, curve.sizes, torch.zeros_like(curve.losses))
        for curve in curves(0)
    ]
    dense = [len(curve.sizes) - 1 for curve in found]
    assert choice(name, found, spent(found, dense)) == dense


@pytest.mark.parametrize("name", NAMES)
def test_full_budget_keeps_everything_dense(name: str) -> None:
    found = curves(0)
    dense = [len(curve.sizes) - 1 for curve in found]
    assert choice(name, found, spent(found, dense)) == dense


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [1, 2])
def test_loss_never_rises_with_budget(name: str, seed: int) -> None:
    found = curves(seed)
    whole = spent(found, [len(curve.sizes) - 1 for curve in found])
    # to a rule that measures, a loss is what it measured
    loss = truth(found) if name in MEASURING else functools.partial(lost, found)
    losses = [loss(choice(name, found, part * whole)) for part in (0.4, 0.6, 0.8, 1)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_protected_site_keeps_its_only_cut(name: str) -> None:
    found = curves(2)
    first = found[0]
    found[0] = Curve(first.sites, first.ranks[-1:], first.sizes[-1:], first.losses[-1:])
    whole = spent(found, [len(curve.sizes) - 1 for curve in found])
    chosen = choice(name, found, 0.6 * whole)
    assert chosen[0] == 0
    assert spent(found, chosen) <= 0.6 * whole


@pytest.mark.parametrize("part", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("seed", range(6))
def test_global_is_close_to_the_exact_optimum(part: float, seed: int) -> None:
    """The Lagrangian misses the optimum by less than the dearest single exchange."""
    found = curves(seed)
    budget = part * spent(found, [len(curve.sizes) - 1 for curve in found])
    best = min(
        lost(found, list(chosen))
        for chosen in itertools.product(*(range(len(curve.sizes)) for curve in found))
        if spent(found, list(chosen)) <= budget
    )
    chosen = allocators.get("global")(found, budget)
    step = max(float(-curve.losses.diff().min()) for curve in found)
    assert best <= lost(found, chosen) + 1e-6
    assert lost(found, chosen) <= best + step
    assert lost(found, chosen) <= lost(found, allocators.get("uniform")(found, budget)) + 1e-9
