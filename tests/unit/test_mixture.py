"""Several methods at once, with made-up curves and a made-up truth: one scale a method."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from spectrim.curve import Curve, Group
from spectrim.cutting.mixture import PLAIN, SCALED, mixed, present, restored, scaled
from spectrim.job.job import Budget, Job
from spectrim.model.sites import Site
from spectrim.plan import Decision
from spectrim.recipe.options import Factorize

SIDE, BLOCKS, DENSE = 16, 4, 3.0
FIRST, SECOND = "loss_aware_svd", "whitened_svd"
RANKS = torch.arange(1, 8)


def curve(block: int, method: str, level: float, fall: float) -> Curve:
    """What a method says of one site: level x exp(-fall x rank)."""
    site = Site(f"s{block}", block, "q", SIDE, SIDE)
    sizes = torch.tensor([*(2 * SIDE * r for r in RANKS.tolist()), SIDE * SIDE]).double()
    losses = torch.cat((level * torch.exp(-fall * RANKS), torch.zeros(1))).double()
    group = Group(method, (site,), ("low_rank",))
    ranks = torch.cat((RANKS, torch.tensor([SIDE])))
    return Curve((site,), ranks, sizes, losses, (group,) * len(RANKS))


def job(keep: float = 0.5) -> Any:
    found = [Site(f"s{block}", block, "q", SIDE, SIDE) for block in range(BLOCKS)]
    source = SimpleNamespace(name="made up", fingerprint="0")
    made = Mock(spec=Job)
    made.configure_mock(sites=found, budget=Budget(keep, "linear"), whole={}, source=source)
    made.statistics_key = "0"
    return made


OPTIONS = Factorize(method=f"{FIRST},{SECOND}", format="low_rank", rank_multiple=1)


class Truth:
    """What decisions truly cost: so many times what each method's own curve predicts."""

    def __init__(self, curves: list[Curve], factors: dict[str, float]) -> None:
        self.factors, self.asked = factors, 0
        self.known = {
            (one.site.name, one.methods[0], int(rank)): float(loss)
            for one in curves
            for rank, loss in zip(one.ranks, one.losses, strict=True)
        }

    def __call__(self, decisions: tuple[Decision, ...]) -> float:
        self.asked += 1
        return DENSE + sum(
            self.factors[one.method] * self.known[one.site, one.method, one.rank]
            for one in decisions
            if one.format != "dense"
        )


def both(first: float = 1.0, second: float = 0.7) -> list[Curve]:
    """SECOND promises less loss everywhere; FIRST reaches all sites, and so does it."""
    return [
        curve(block, method, level, 0.2 + 0.1 * block)
        for block in range(BLOCKS)
        for method, level in ((FIRST, first), (SECOND, second))
    ]


def test_a_method_that_predicts_too_little_is_corrected() -> None:
    curves = both()
    truth = Truth(curves, {FIRST: 1.0, SECOND: 3.0})
    plan, note = mixed(job(), OPTIONS, curves, truth)
    assert note["scales"] == pytest.approx({FIRST: 1.0, SECOND: 3.0})
    assert {one.method for one in plan.decisions} - {""} == {FIRST}
    assert note["search_losses"][SCALED] == pytest.approx(note["search_losses"][FIRST])
    assert note["search_losses"][PLAIN] > note["search_losses"][SCALED] + 0.1


def test_predicted_losses_are_those_measured_where_the_scaled_choice_wins() -> None:
    curves = both(second=0.7)[:4] + both(second=5.0)[4:]  # each method is best in two blocks
    truth = Truth(curves, {FIRST: 2.0, SECOND: 1.2})
    plan, note = mixed(job(), OPTIONS, curves, truth)
    assert note["chosen"] == SCALED
    assert truth(plan.decisions) - DENSE == pytest.approx(plan.predicted_loss)
    assert restored(curves, {"found": {"mixture": note}})[1].losses[0] == pytest.approx(
        1.2 * float(curves[1].losses[0])
    )
    assert restored(curves, {}) == curves


@pytest.mark.parametrize("keep", [0.13, 0.3, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("allocator", ["global", "uniform", "measured", "surgical"])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (1.0, 3.0), (5.0, 0.3), (0.01, 100.0)])
def test_it_is_never_worse_than_the_best_single_method(
    keep: float, allocator: str, factors: tuple[float, float]
) -> None:
    curves = both()
    truth = Truth(curves, dict(zip((FIRST, SECOND), factors, strict=True)))
    options = OPTIONS.model_copy(update={"allocator": allocator})
    plan, note = mixed(job(keep), options, curves, truth)
    assert {FIRST, SECOND, PLAIN, SCALED} == note["search_losses"].keys()
    assert truth(plan.decisions) == min(note["search_losses"].values())
    assert sum(one.stored for one in plan.decisions) <= keep * BLOCKS * SIDE * SIDE
    for single in (FIRST, SECOND):
        own = [one for one in curves if single in one.methods]
        alone = mixed(job(keep), options, own, truth)[0]
        assert truth(plan.decisions) <= truth(alone.decisions) + 1e-12


def test_what_reaches_some_sites_is_judged_where_the_mixture_cuts_them() -> None:
    curves = [one for one in both() if one.methods[0] == FIRST or one.site.block < 2]
    truth = Truth(curves, {FIRST: 1.5, SECOND: 2.5})
    _, note = mixed(job(0.2), OPTIONS, curves, truth)
    assert note["scales"] == pytest.approx({FIRST: 1.5, SECOND: 2.5})
    assert SECOND not in note["search_losses"], "alone it cannot meet the budget"


def test_what_the_mixture_leaves_whole_is_judged_at_the_budget() -> None:
    curves = [curve(0, SECOND, 1e3, 0.1), *(curve(b, FIRST, 0.1, 0.5) for b in range(1, BLOCKS))]
    truth = Truth(curves, {FIRST: 1.0, SECOND: 0.2})
    assert mixed(job(), OPTIONS, curves, truth)[1]["scales"] == pytest.approx(
        {FIRST: 1.0, SECOND: 0.2}
    )


def test_a_correction_is_bounded_and_a_breakdown_counts_as_the_bound() -> None:
    curves = both()
    _, note = mixed(job(), OPTIONS, curves, Truth(curves, {FIRST: -1.0, SECOND: inf}))
    assert note["scales"] == pytest.approx({FIRST: 0.1, SECOND: 10.0})


def test_a_budget_for_everything_measures_nothing() -> None:
    truth = Truth(both(), {FIRST: 1.0, SECOND: 1.0})
    plan, note = mixed(job(1.0), OPTIONS, both(), truth)
    assert note == {} and truth.asked == 0 and plan.predicted_loss == 0


def test_curves_are_scaled_method_by_method() -> None:
    curves = both()
    assert present(curves) == [FIRST, SECOND]
    half = scaled(curves, {SECOND: 0.5})
    for before, after in zip(curves, half, strict=True):
        factor = 0.5 if SECOND in before.methods else 1.0
        assert torch.equal(after.losses, factor * before.losses)
