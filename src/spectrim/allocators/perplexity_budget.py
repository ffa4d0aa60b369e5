"""The same rise of measured perplexity at every site: SFSD's search by perplexity, site by site."""

from __future__ import annotations

from math import exp, log

from spectrim.allocators import Measure, needed
from spectrim.allocators._spending import dense, largest, spent
from spectrim.curve import Curve

MEASURES = True
FACTOR = 1.005  # of the dense model's perplexity, for each site alone
GRID = 10  # cuts that are tried, at tenths of the dense size
TINY = 1e-12  # nats per token, so that every multiple of a unit reaches everything


def perplexity_budget(
    curves: list[Curve], budget: float, measure: Measure | None = None
) -> list[int]:
    """Return for every curve the smallest cut that raises perplexity by one factor at most.

    SFSD (2405.13039, search by perplexity) lets each linear map raise the perplexity by 1.005 and
    takes the smallest rank of a grid of tenths that does not exceed it. Here each site is cut
    alone, so that the order does not matter, and its limit found by bisection over the grid. What
    that cut is predicted to lose, corrected by what was measured next to it, is the site's unit;
    every site then takes the smallest cut within a common multiple of its unit, as the budget
    allows. At a multiple of one, this is close to the published rule, but not the same: a cut may
    lie between two of the grid, where the curve says that it still keeps to the factor.

    About 4 evaluations a site, whatever the budget, and one of the dense model.
    budget: in the unit of the curves' sizes.

    Raises:
        SpectrimError: there is nothing to measure with.
    """
    measure = needed(measure, "perplexity_budget")
    if budget >= spent(curves, dense(curves)):
        return dense(curves)
    whole = measure(dense(curves))
    # from the last block to the first, as what lies in front of a cut need not be run again
    order = reversed(range(len(curves)))
    found = {place: _unit(curves, place, measure, whole) for place in order}
    units = [found[place] for place in range(len(curves))]

    def choose(less: float) -> list[int]:
        return [
            int((curve.losses[:-1].double() > exp(-less) * unit).sum())
            for curve, unit in zip(curves, units, strict=True)
        ]

    return largest(curves, budget, choose, -200.0, 200.0)


def _unit(curves: list[Curve], place: int, measure: Measure, whole: float) -> float:
    """Return the predicted loss at which a site, cut alone, raises perplexity by the factor."""
    curve, allowed = curves[place], log(FACTOR)
    grid = _grid(curve)
    low, high, rises = 0, len(grid) - 1, {len(grid) - 1: 0.0}
    while low < high:  # the smallest cut of the grid that is allowed; the dense one is
        middle = (low + high) // 2
        chosen = dense(curves)
        chosen[place] = grid[middle]
        rises[middle] = measure(chosen) - whole
        low, high = (low, middle) if rises[middle] <= allowed else (middle + 1, high)
    near = max(high - 1, 0)  # the largest that is not; a rise below a tenth would be noise
    within, above = float(curve.losses[grid[high]]), float(curve.losses[grid[near]])
    return max(above * allowed / max(rises[near], allowed / 10), within, TINY)


def _grid(curve: Curve) -> list[int]:
    """Return the largest cut within every tenth of the dense size, each once and rising."""
    parts = [float(curve.sizes[-1]) * step / GRID for step in range(1, GRID + 1)]
    return sorted({max(int((curve.sizes <= part).sum()) - 1, 0) for part in parts})
