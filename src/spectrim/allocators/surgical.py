"""Backward greedy with roll-back: SFSD's surgical search, its tolerance relaxed to the budget."""

from __future__ import annotations

from spectrim.allocators import Measure, needed
from spectrim.allocators._spending import dense, spent
from spectrim.plan import Curve

MEASURES = True
PARTS = (0.25, 0.5, 0.75)  # of the dense size: what is tried, from aggressive to mild
TOLERANCE = 1e-3  # δ of the first pass, nats per token
GROWTH = 4.0  # of δ from pass to pass
PASSES = 8


def surgical(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve its cut where a backward greedy search first meets the budget.

    SFSD (2405.13039, surgical rank search): from dense, from the last site to the first, the
    smallest cut that raises the measured loss by at most δ over the last accepted choice is kept,
    and the site rolled back where there is none. As a δ given beforehand meets no budget, passes
    over all sites follow each other with δ four times as large, until it is met; the cut that meets
    it is then the largest which does. Two things differ: three cuts are tried, at a quarter, half
    and three quarters of the dense size, where SFSD tries eleven on each of three chunks of text;
    and every δ counts from the last accepted choice, where SFSD's counts from the dense model.

    At most 3 evaluations a site and pass; a cut is not tried again before δ reaches what it cost
    when it was tried last. The search does not depend on the budget, but for where it ends. Where
    8 passes do not suffice, the last sites take their smallest cuts unmeasured.
    budget: in the unit of the curves' sizes.

    Raises:
        SpectrimError: there is nothing to measure with.
    """
    measure = needed(measure, "surgical")
    chosen = dense(curves)
    if budget >= spent(curves, chosen):
        return chosen
    loss, rises = measure(chosen), dict[tuple[int, int], float]()
    for step in range(PASSES):
        allowed = TOLERANCE * GROWTH**step
        for place in reversed(range(len(curves))):
            for cut in _smaller(curves[place], chosen[place]):
                if rises.get((place, cut), 0.0) > allowed:
                    continue
                tried = [*chosen[:place], cut, *chosen[place + 1 :]]
                found = measure(tried)
                rises[place, cut] = found - loss
                if found - loss <= allowed:
                    chosen, loss = tried, found
                    break
            if spent(curves, chosen) <= budget:
                return _refilled(curves, budget, chosen, place)
    return _forced(curves, budget, chosen)


def _smaller(curve: Curve, chosen: int) -> list[int]:
    """Return the cuts to try that are smaller than the chosen one, from aggressive to mild."""
    parts = [int((curve.sizes <= part * curve.sizes[-1]).sum()) - 1 for part in PARTS]
    return sorted({cut for cut in (max(part, 0) for part in parts) if cut < chosen})


def _refilled(curves: list[Curve], budget: float, chosen: list[int], place: int) -> list[int]:
    """Return the choice with the largest cut of one site that the budget allows."""
    for cut in reversed(range(chosen[place], len(curves[place].sizes))):
        tried = [*chosen[:place], cut, *chosen[place + 1 :]]
        if spent(curves, tried) <= budget:
            return tried
    return chosen


def _forced(curves: list[Curve], budget: float, chosen: list[int]) -> list[int]:
    for place in reversed(range(len(curves))):
        chosen = [*chosen[:place], 0, *chosen[place + 1 :]]
        if spent(curves, chosen) <= budget:
            return _refilled(curves, budget, chosen, place)
    return chosen
