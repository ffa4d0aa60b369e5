"""The rank rules beside `global` and `uniform`, against closed forms and known truths."""

from __future__ import annotations

from math import log

import pytest
import torch

from spectrim.allocators import Measure, allocators
from spectrim.allocators.knee import knee_of
from spectrim.plan import Curve
from spectrim.sites import Site

FULL = 20
DENSE_LOSS = 3.0


def curve(losses: torch.Tensor, values: torch.Tensor | None = None, block: int = 0) -> Curve:
    """A curve of two factors of a square matrix, of every rank that stores less than it."""
    ranks = torch.arange(1, len(losses) + 1)
    site = Site(f"s{block}", block, "q", FULL, FULL)
    sizes = torch.cat((ranks[:-1] * 2 * FULL, torch.tensor([FULL * FULL]))).double()
    full = torch.cat((ranks[:-1], torch.tensor([FULL])))
    return Curve((site,), full, sizes, losses, ("m",) * (len(losses) - 1), values)


def spectrum(fall: float, block: int = 0, *, shown: bool = True) -> Curve:
    """The curve of singular values i^-fall: what is lost are half the squares that are cut."""
    values = torch.arange(1, FULL + 1).double() ** -fall
    tails = 0.5 * values.square().flip(0).cumsum(0).flip(0)
    losses = torch.cat((tails[1:10], torch.zeros(1)))
    return curve(losses, values if shown else None, block)


def spent(found: list[Curve], chosen: list[int]) -> float:
    return sum(float(one.sizes[at]) for one, at in zip(found, chosen, strict=True))


def ranks(found: list[Curve], chosen: list[int]) -> list[int]:
    return [int(one.ranks[at]) for one, at in zip(found, chosen, strict=True)]


class Truth:
    """Measures what a choice truly costs, and counts."""

    def __init__(self, found: list[Curve], scales: list[float]) -> None:
        self.found, self.scales, self.asked = found, scales, 0

    def __call__(self, chosen: list[int]) -> float:
        self.asked += 1
        cuts = zip(self.scales, self.found, chosen, strict=True)
        return DENSE_LOSS + sum(scale * float(one.losses[at]) for scale, one, at in cuts)


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
        ("m",) * 14,
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
            ("m",) * (FULL - 1),
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


# by measuring


def test_perplexity_budget_gives_every_site_the_same_measured_rise() -> None:
    found = [spectrum(0.5, 0), spectrum(0.5, 1), spectrum(0.5, 2)]
    scales = [0.001, 0.004, 0.015]
    truth = Truth(found, scales)
    free = allocators.get("perplexity_budget")(found, 0.999 * spent(found, [9, 9, 9]), truth)
    assert truth.asked <= 1 + 4 * 3
    for budget in (0.35, 0.5, 0.7):
        chosen = allocators.get("perplexity_budget")(found, budget * spent(found, [9, 9, 9]), truth)
        rises = [s * float(c.losses[at]) for s, c, at in zip(scales, found, chosen, strict=True)]
        milder = [
            s * float(c.losses[at - 1]) if at else 1.0
            for s, c, at in zip(scales, found, chosen, strict=True)
        ]
        # one limit lies above what every site costs and below what its next smaller cut would
        assert max(rises) <= min(milder) + 1e-9
    assert spent(found, free) >= spent(found, chosen)


def fine(fall: float, block: int, full: int = 200) -> Curve:
    """A curve with a cut at every percent of the size, not only at tenths."""
    ranks_ = torch.arange(1, full // 2 + 1)
    squares = torch.arange(1, full + 1).double() ** (-2 * fall)
    losses = 0.5 * (squares.sum() - squares.cumsum(0)[: full // 2])
    losses[-1] = 0.0
    site = Site(f"s{block}", block, "q", full, full)
    return Curve((site,), ranks_, (ranks_ * 2 * full).double(), losses)


def test_perplexity_budget_at_its_own_size_is_close_to_the_published_rule() -> None:
    found = [fine(0.5, block) for block in range(3)]
    scales = [0.004, 0.006, 0.009]
    published = [
        next(at for at in range(9, 100, 10) if scale * float(one.losses[at]) <= log(1.005))
        for scale, one in zip(scales, found, strict=True)
    ]
    assert len(set(published)) > 1
    truth = Truth(found, scales)
    chosen = allocators.get("perplexity_budget")(found, spent(found, published), truth)
    assert chosen != published  # between two cuts of the grid
    assert all(abs(one - other) <= 10 for one, other in zip(chosen, published, strict=True))


def test_perplexity_budget_where_the_grid_is_all_there_is_is_the_published_rule() -> None:
    found = [spectrum(0.5, block) for block in range(3)]
    scales = [0.004, 0.006, 0.009]
    published = [
        next(at for at in range(10) if scale * float(one.losses[at]) <= log(1.005))
        for scale, one in zip(scales, found, strict=True)
    ]
    assert len(set(published)) > 1 and min(published) > 0 and max(published) < 9
    budget = spent(found, published)
    assert allocators.get("perplexity_budget")(found, budget, Truth(found, scales)) == published


def test_surgical_cuts_from_the_last_site_and_rolls_back_what_hurts() -> None:
    found = [spectrum(0.5, block) for block in range(4)]
    truth = Truth(found, [1e-4, 1e-4, 10.0, 1e-4])
    chosen = allocators.get("surgical")(found, spent(found, [9, 9, 9, 1]), truth)
    assert chosen == [9, 9, 9, 1] and truth.asked == 2
    chosen = allocators.get("surgical")(found, spent(found, [9, 5, 9, 0]), truth)
    assert chosen == [9, 5, 9, 0]  # the third rolled back, the last cut of all refilled
    assert truth.asked == 2 + 1 + 1 + 4 + 1


def test_surgical_relaxes_its_tolerance_until_the_budget_is_met() -> None:
    found = [spectrum(0.5, block) for block in range(4)]
    truth = Truth(found, [3.0, 1.0, 4.0, 2.0])
    chosen = allocators.get("surgical")(found, spent(found, [3, 3, 3, 3]), truth)
    assert spent(found, chosen) <= spent(found, [3, 3, 3, 3])
    assert truth.asked <= 1 + 5 * 4 * 8
    budget, huge = spent(found, [9, 9, 5, 0]), Truth(found, [1e9] * 4)
    chosen = allocators.get("surgical")(found, budget, huge)
    assert chosen == allocators.get("global")(found, budget)  # as nothing is ever accepted


def by_thirds() -> tuple[list[Curve], list[float]]:
    """Curves of six blocks, and what every third of them costs more or less than predicted."""
    found = [spectrum(0.3 + 0.1 * block, block) for block in range(6)]
    return found, [0.2, 0.2, 1.0, 1.0, 4.0, 4.0]


@pytest.mark.parametrize("part", [0.4, 0.6, 0.8])
def test_measured_finds_what_the_curves_are_wrong_by(part: float) -> None:
    found, scales = by_thirds()
    budget = part * spent(found, [9] * 6)
    truth = Truth(found, scales)
    chosen = allocators.get("measured")(found, budget, truth)
    right = [
        Curve(one.sites, one.ranks, one.sizes, one.losses * scale)
        for one, scale in zip(found, scales, strict=True)
    ]
    assert truth.asked <= 2 * (1 + 3) + 3
    assert chosen == allocators.get("global")(right, budget)
    assert truth(chosen) < truth(allocators.get("global")(found, budget))


def test_measured_is_never_worse_than_global_although_the_corrections_are_noise() -> None:
    found, _ = by_thirds()
    budget = 0.6 * spent(found, [9] * 6)
    start = allocators.get("global")(found, budget)
    misled: Measure = lambda chosen: 0.0 if chosen == start else float(hash(tuple(chosen)) % 97)  # noqa: E731
    assert allocators.get("measured")(found, budget, misled) == start
