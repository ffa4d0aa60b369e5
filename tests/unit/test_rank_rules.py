"""The rank rules beside `global` and `uniform`, against closed forms and known truths."""

from __future__ import annotations

import pytest
import torch

from spectrim.allocators import allocators
from spectrim.allocators.knee import knee_of
from spectrim.curve import Curve, Group
from spectrim.model.sites import Site
from tiny_curves import FULL, curve, ranks, spectrum, spent

# by share


@pytest.mark.parametrize(("name", "power"), [("energy", 2), ("spectral_mass", 1)])
def test_every_site_keeps_the_fewest_singular_values_with_a_common_share(
    name: str, power: int
) -> None:
    falls = (1.5, 0.7, 0.3)
    found = [spectrum(fall, block) for block, fall in enumerate(falls)]
    budget = 0.55 * spent(found, [9, 9, 9])
    chosen = allocators.get(name)(found, budget)
    assert len(set(chosen)) == 3

    def share(fall: float, rank: int) -> float:
        powers = [i ** (-fall * power) for i in range(1, FULL + 1)]
        return sum(powers[:rank]) / sum(powers)

    kept = ranks(found, chosen)
    threshold = min(share(fall, rank) for fall, rank in zip(falls, kept, strict=True))
    fewest = [
        next(r for r in range(1, FULL + 1) if share(fall, r) >= threshold - 1e-12) for fall in falls
    ]
    # a factored site has no more than rank 9; above that it is dense
    assert kept == [rank if rank <= 9 else FULL for rank in fewest]
    # and a site that needs more for a higher share is the one that no longer fits
    shares = [share(fall, rank) for fall, rank in zip(falls, kept, strict=True)]
    next_up = shares.index(min(shares))
    more = [at + (place == next_up) for place, at in enumerate(chosen)]
    assert spent(found, more) > budget


def test_the_two_shares_differ_where_singular_values_fall_differently() -> None:
    found = [spectrum(1.0, 0), spectrum(0.5, 1)]
    budget = 0.5 * spent(found, [9, 9])
    by_squares, by_values = (
        ranks(found, allocators.get(name)(found, budget)) for name in ("energy", "spectral_mass")
    )
    assert by_values[0] > by_squares[0]


def test_without_singular_values_the_losses_stand_for_the_energy() -> None:
    def exponential(block: int, rate: float, *, shown: bool) -> Curve:
        values = torch.exp(-rate * torch.arange(FULL).double())
        tails = values.square().flip(0).cumsum(0).flip(0)
        return curve(torch.cat((tails[1:10], torch.zeros(1))), values if shown else None, block)

    rates = (0.2, 0.5, 0.9)
    shown = [exponential(block, rate, shown=True) for block, rate in enumerate(rates)]
    hidden = [exponential(block, rate, shown=False) for block, rate in enumerate(rates)]
    budget = 0.5 * spent(shown, [9, 9, 9])
    kept = ranks(hidden, allocators.get("energy")(hidden, budget))
    # the tail from rank r on falls by e^-2 rate r: a threshold on it is rank x rate, nearly
    reached = [(rank - 1) * rate for rank, rate in zip(kept, rates, strict=True)]
    assert kept == sorted(kept, reverse=True) and max(reached) - min(reached) < max(rates)


@pytest.mark.parametrize("name", ["energy", "spectral_mass"])
def test_where_one_has_no_singular_values_all_are_on_the_scale_of_the_losses(name: str) -> None:
    falls = (1.5, 0.7, 0.3)
    mixed, hidden = (
        [spectrum(fall, block, shown=show and block != 1) for block, fall in enumerate(falls)]
        for show in (True, False)
    )
    one = mixed[0]
    kept = Curve(one.sites, one.ranks[-1:], one.sizes[-1:], one.losses[-1:])
    choose, budget = allocators.get(name), 0.55 * spent(mixed, [9, 9, 9])
    assert choose(mixed, budget) == choose(hidden, budget)
    # one that is protected, and has nothing to choose, changes no scale
    shown = [spectrum(fall, block) for block, fall in enumerate(falls)]
    assert choose([*shown, kept], budget + float(kept.sizes[-1])) == [*choose(shown, budget), 0]


# break-even


def test_break_even_gives_parts_of_mn_over_m_plus_n() -> None:
    wide = Site("wide", 1, "up", 60, FULL)  # breaks even at rank 15, the square one at 10
    steps = torch.arange(1, 15)
    values = torch.ones(FULL)
    other = Curve(
        (wide,),
        torch.cat((steps, torch.tensor([FULL]))),
        torch.cat((steps * 80, torch.tensor([1200]))).double(),
        torch.linspace(1, 0, 15),
        (Group("m", (wide,), ("low_rank",)),) * 14,
        values,
    )
    found = [spectrum(1.0), other]
    chosen = allocators.get("break_even")(found, 0.6 * 1600)
    assert ranks(found, chosen) == [6, 9]


def test_break_even_leaves_the_first_sites_dense_where_no_factored_one_may_grow() -> None:
    values = torch.ones(FULL)
    steps = torch.arange(1, FULL + 1)
    found = [
        Curve(
            (Site(f"s{block}", block, "q", FULL, FULL),),
            steps,
            (steps * (2 * FULL - steps)).double(),  # pivoted storage: three quarters at rank 10
            torch.linspace(1, 0, FULL),
            (Group("m", (Site(f"s{block}", block, "q", FULL, FULL),), ("low_rank",)),) * (FULL - 1),
            values,
        )
        for block in range(4)
    ]
    assert ranks(found, allocators.get("break_even")(found, 0.75 * 1600)) == [10] * 4
    assert ranks(found, allocators.get("break_even")(found, 0.9 * 1600)) == [20, 20, 10, 10]
    assert max(ranks(found, allocators.get("break_even")(found, 0.7 * 1600))) < 10


# knee


def hinge(at: int, block: int = 0) -> Curve:
    """A loss that falls steeply to the cut ``at`` and slowly behind it."""
    steep = torch.linspace(1, 0.1, at + 1)
    slow = torch.linspace(0.1, 0, 10 - at)[1:]
    return curve(torch.cat((steep, slow)), block=block)


@pytest.mark.parametrize("at", [2, 3, 5])
def test_the_knee_of_a_hinge_is_where_it_bends(at: int) -> None:
    assert knee_of(hinge(at)) == at


def test_a_line_has_no_knee() -> None:
    ranks_ = torch.arange(1, 11)
    site = Site("s", 0, "q", 10, 10)
    line = Curve((site,), ranks_, ranks_.double(), torch.linspace(1, 0, 10, dtype=torch.float64))
    flat = Curve((site,), ranks_, ranks_.double(), torch.zeros(10))
    assert allocators.get("knee")([line, line], 10.0) == [4, 4]
    assert knee_of(flat) == 0


def test_knees_are_scaled_together() -> None:
    found = [hinge(1), hinge(3, 1)]  # ranks 2 and 4
    kept = ranks(found, allocators.get("knee")(found, spent(found, [1, 3])))
    assert kept == [2, 4]
    kept = ranks(found, allocators.get("knee")(found, spent(found, [3, 7])))
    assert kept == [4, 8]
