"""Rank rules that look at the true loss, against truths that are known."""

from __future__ import annotations

from math import log

import pytest
import torch

from spectrim.allocators import Measure, allocators
from spectrim.curve import Curve
from spectrim.model.sites import Site
from tiny_curves import Truth, spectrum, spent


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
