"""Several methods at once: their curves brought to one scale by true losses, the best choice kept.

A second-order prediction drifts, and not alike for every method; the lower envelope of curves that
drift apart takes the method that flatters itself most. One scale a method puts that right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from spectrim.allocators.measured import MOST
from spectrim.curve import Curve
from spectrim.cutting.allocation import Unit, allocate, decided, meets, units
from spectrim.job.job import Job, inner_sites
from spectrim.plan import Decision, Plan, left_dense
from spectrim.recipe.options import Factorize

Loss = Callable[[tuple[Decision, ...]], float]
"""Decisions → the loss on the search split that they lead to, nats per token."""
PLAIN, SCALED = "all", "all, scaled"


def mixed(
    job: Job, options: Factorize, curves: list[Curve], measure: Loss
) -> tuple[Plan, dict[str, Any]]:
    """Return the best plan found for several methods, and what is to be noted of it.

    Of the choices that are made (by each method alone, if it meets the budget; by all on their
    curves as they are; by all on scaled curves) the one that loses least on the search split is
    returned, so that it is never worse there than the best single method. Where the scaled one is,
    the plan's predicted losses are scaled too.

    Beside what the allocator measures: an evaluation of the dense model, one for every choice, and
    one for every method that reaches some sites only or does not meet the budget.

    Raises:
        SpectrimError: what cannot be factored, or the smallest cuts, already exceed the budget.
    """
    makes = _Making(job, options, measure)
    plans = {PLAIN: makes.plan(curves)}
    if all(one.format == "dense" for one in plans[PLAIN].decisions):
        return plans[PLAIN], {}
    for method in present(curves):
        own = [curve for curve in curves if method in curve.methods]
        if makes.can_be_met(own):
            plans[method] = makes.plan(own)
    scales = {
        method: makes.scale(method, curves, plans[PLAIN], plans.get(method))
        for method in present(curves)
    }
    plans[SCALED] = makes.plan(scaled(curves, scales))
    losses = {name: measure(plan.decisions) for name, plan in plans.items()}
    best = min(losses, key=lambda name: losses[name])
    note = {"chosen": best, "scales": scales, "search_losses": losses}
    return plans[best], note | ({"scaled": True} if best == SCALED else {})


def present(curves: list[Curve]) -> list[str]:
    """Return the methods that offer any cut, in the order in which they come."""
    return list(dict.fromkeys(name for curve in curves for name in curve.methods if name))


def scaled(curves: list[Curve], scales: dict[str, float]) -> list[Curve]:
    """Return curves of one method each with the losses times the method's scale."""
    return [
        replace(curve, losses=curve.losses * scales.get(curve.methods[0], 1.0))
        if curve.methods
        else curve
        for curve in curves
    ]


def restored(curves: list[Curve], about: dict[str, Any]) -> list[Curve]:
    """Return curves as a plan saw them, that is scaled where the scaled choice was the best."""
    note = (about.get("found") or {}).get("mixture") or {}
    return scaled(curves, note["scales"]) if note.get("chosen") == SCALED else curves


@dataclass(frozen=True)
class _Making:
    """Makes plans of some curves under the job's budget, and compares them with the truth."""

    job: Job
    options: Factorize
    measure: Loss

    def units(self, curves: list[Curve]) -> list[Unit]:
        return units(self.job, curves)

    def can_be_met(self, curves: list[Curve]) -> bool:
        return meets(self.job, [unit.curve for unit in self.units(curves)])

    def plan(self, curves: list[Curve]) -> Plan:
        bought = self.units(curves)

        def measure(chosen: list[int]) -> float:
            return self.measure(decided(bought, chosen))

        return allocate(self.job, self.options, bought, measure)

    def scale(self, method: str, curves: list[Curve], mixture: Plan, alone: Plan | None) -> float:
        """Return how many times what a method predicts its cuts truly cost.

        Judged by its own plan; where that is none, or it does not reach all that others do, by the
        sites that it reaches, cut as far as the mixture has them.
        """
        own = [curve for curve in curves if method in curve.methods]
        reaches_all = _reached(own) == _reached(curves)
        decisions = alone.decisions if alone and reaches_all else self.cut_as(mixture, own)
        predicted = sum(one.predicted_loss for one in decisions)
        if predicted <= 0:
            return 1.0
        dense = tuple(left_dense(site) for site in inner_sites(self.job))
        rise = self.measure(decisions) - self.measure(dense)
        return min(max(rise / predicted, 1 / MOST), MOST)

    def cut_as(self, mixture: Plan, own: list[Curve]) -> tuple[Decision, ...]:
        """Return the sites that some curves reach, cut to the part that the mixture keeps of each.

        Where it keeps all of them whole, every one is cut to the part that the budget keeps.
        """
        names = _reached(own)
        whole = all(mixture[name].format == "dense" for name in names)
        bought = self.units(own)
        chosen = []
        for unit in bought:
            found = [mixture[site.name] for site in unit.curve.sites]
            part = sum(one.stored for one in found) / sum(one.dense for one in found)
            sizes = unit.curve.sizes
            within = sizes <= (self.job.budget.fraction if whole else part) * sizes[-1]
            chosen.append(max(int(within.sum()) - 1, 0))
        return decided(bought, chosen)


def _reached(curves: list[Curve]) -> set[str]:
    return {site.name for curve in curves if curve.methods for site in curve.sites}
