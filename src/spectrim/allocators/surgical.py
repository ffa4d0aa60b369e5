"""Backward greedy with roll-back: SFSD's surgical search, its tolerance relaxed to the budget."""

from __future__ import annotations

from dataclasses import replace

from spectrim.allocators import Measure, needed
from spectrim.allocators._spending import dense, spent
from spectrim.allocators.global_ import global_
from spectrim.curve import Curve

MEASURES = True
PARTS = (0.05, 0.1, 0.25, 0.5, 0.75)  # of the dense size: what is tried, from aggressive to mild
TOLERANCE = 1e-3  # δ of the first pass, nats per token
GROWTH = 4.0  # of δ from pass to pass
PASSES = 8


def surgical(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve its cut where a backward greedy search first meets the budget.

    SFSD (2405.13039, surgical rank search): from dense, from the last site to the first, the
    smallest cut that raises the measured loss by at most δ over the last accepted choice is kept,
    and the site rolled back where there is none. As a δ given beforehand meets no budget, passes
    over all sites follow each other with δ four times as large, until it is met; the cut that meets
    it is then the largest which does. Two things differ: five cuts are tried, at a twentieth to
    three quarters of the dense size, where SFSD tries eleven on each of three chunks of text; and
    every δ counts from the last accepted choice, where SFSD's counts from the dense model.

    At most 5 evaluations a site and pass; a cut is not tried again before δ reaches what it cost
    when it was tried last. The search does not depend on the budget, but for where it ends. Where
    8 passes do not suffice, as for a budget below what the cuts tried take, the rest is not
    measured: `global` shares the budget among the cuts that are no larger than those accepted.
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
    return global_([_up_to(curve, at) for curve, at in zip(curves, chosen, strict=True)], budget)


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


def _up_to(curve: Curve, at: int) -> Curve:
    """Return the curve without the cuts that are larger than one."""
    ranks, sizes, losses = (one[: at + 1] for one in (curve.ranks, curve.sizes, curve.losses))
    return replace(curve, ranks=ranks, sizes=sizes, losses=losses)
