"""What simple rules have in common: one number for all sites, as large as the budget allows."""

from __future__ import annotations

from collections.abc import Callable

from spectrim.curve import Curve

HALVINGS = 100  # of the range of the number: as fine as float64


def dense(curves: list[Curve]) -> list[int]:
    """Return the choice that leaves every site as it is."""
    return [len(curve.sizes) - 1 for curve in curves]


def spent(curves: list[Curve], chosen: list[int]) -> float:
    """Return what a choice takes, in the unit of the curves' sizes."""
    return sum(float(curve.sizes[at]) for curve, at in zip(curves, chosen, strict=True))


def largest(
    curves: list[Curve],
    budget: float,
    choose: Callable[[float], list[int]],
    low: float,
    high: float,
) -> list[int]:
    """Return ``choose`` of the largest number from low to high whose choice is within budget.

    choose: its cuts may only grow with the number, and at ``low`` it takes the smallest.
    A budget for everything leaves everything dense.
    """
    if budget >= spent(curves, dense(curves)):
        return dense(curves)
    if spent(curves, highest := choose(high)) <= budget:
        return highest
    chosen = choose(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if spent(curves, tried := choose(middle)) <= budget:
            low, chosen = middle, tried
        else:
            high = middle
    return chosen
