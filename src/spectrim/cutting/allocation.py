"""From curves to a plan: what is bought together, and one allocation over all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from spectrim.allocators import Measure, allocators
from spectrim.curve import Curve
from spectrim.cutting.curves import dense_curve, envelope, read_curves, undominated
from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.model.sites import Site
from spectrim.plan import Decision, Plan
from spectrim.recipe.options import Factorize

Pick = tuple[Curve, int]
Point = tuple[float, float, tuple[Pick, ...]]
"""Size, loss, and the cuts that they are the sums of."""
POINTS = 2048  # sums of cuts at most that a unit of several sites offers


@dataclass(frozen=True)
class Unit:
    """Sites that are bought together: the curve of the whole, and what each cut of it picks."""

    curve: Curve
    picks: list[tuple[Pick, ...]] | None = None

    def picked(self, index: int) -> tuple[Pick, ...]:
        """Return the curves and cuts that a cut of the whole stands for."""
        return ((self.curve, index),) if self.picks is None else self.picks[index]


def units(job: Job, curves: list[Curve]) -> list[Unit]:
    """Return what is bought together: the sites one by one, or with those that a method joins."""
    sites = offered_sites(job, curves)
    alone: dict[str, list[Curve]] = {site.name: [] for site in sites}
    joint: list[Curve] = []
    for curve in curves:
        if len(curve.sites) > 1:
            joint.append(curve)
        else:
            alone[curve.site.name].append(curve)
    single = {site.name: envelope(alone[site.name]) or dense_curve(job, site) for site in sites}
    made: list[Unit] = []
    left = dict(single)
    joint = _enveloped(joint)
    while joint:
        members = _connected(joint)
        joint = [curve for curve in joint if not any(curve is one for one in members)]
        names = list(dict.fromkeys(site.name for curve in members for site in curve.sites))
        made.append(_united(members, [left.pop(name) for name in names]))
    made += [Unit(curve) for curve in left.values()]
    order = {site.name: place for place, site in enumerate(sites)}
    return sorted(made, key=lambda unit: order[unit.curve.site.name])


def offered_sites(job: Job, curves: list[Curve]) -> list[Site]:
    """Return the sites inside the blocks, and before or behind them the ends that have a curve."""
    offered = {curve.site.name for curve in curves}
    return [site for site in job.sites if site.block >= 0 or site.name in offered]


def _enveloped(joint: list[Curve]) -> list[Curve]:
    """Return joint curves with those of the same sites, as in other bits, made one."""
    by_sites: dict[tuple[str, ...], list[Curve]] = {}
    for curve in joint:
        by_sites.setdefault(tuple(site.name for site in curve.sites), []).append(curve)
    return [one for curves in by_sites.values() if (one := envelope(curves)) is not None]


def _connected(joint: list[Curve]) -> list[Curve]:
    members, known = [joint[0]], {site.name for site in joint[0].sites}
    while more := [
        curve
        for curve in joint
        if known & {site.name for site in curve.sites} and not any(curve is one for one in members)
    ]:
        members += more
        known |= {site.name for curve in more for site in curve.sites}
    return members


def _united(members: list[Curve], alone: list[Curve]) -> Unit:
    """Return the sites of some joint curves as a unit: joint ones where they fit, others alone."""
    points: list[Point] = []
    for joint in _disjoint(members):
        joined = {site.name for curve in joint for site in curve.sites}
        points += _together([*joint, *(one for one in alone if one.site.name not in joined)])
    dense = tuple((curve, len(curve.sizes) - 1) for curve in alone)
    size = sum(float(curve.sizes[-1]) for curve in alone)
    kept = undominated(point for point in points if point[0] < size)
    kept.append((size, 0.0, dense))  # the last cut of a curve is the dense one, whatever it gains
    sizes, losses, picks = zip(*kept, strict=True)
    sites = tuple(curve.site for curve in alone)
    whole = Curve(
        sites,
        torch.arange(1, len(kept) + 1),
        torch.tensor(sizes, dtype=torch.float64),
        torch.tensor(losses, dtype=torch.float64),
    )
    return Unit(whole, list(picks))


def _disjoint(members: list[Curve]) -> list[list[Curve]]:
    """Return every choice of joint curves that have no site in common, that of none first."""
    chosen: list[list[Curve]] = [[]]
    for curve in members:
        names = {site.name for site in curve.sites}
        chosen += [
            [*some, curve]
            for some in chosen
            if not any(site.name in names for other in some for site in other.sites)
        ]
    return chosen


def _together(parts: list[Curve]) -> list[Point]:
    """Return the sums of cuts of several curves of which none is both larger and worse.

    The curves need not be convex, so all sums count, thinned out where there are over ``POINTS``.
    """
    sizes, losses = parts[0].sizes.double(), parts[0].losses.double()
    picks = torch.arange(len(sizes))[:, None]  # [points, parts]
    for part in parts[1:]:
        both = (sizes[:, None] + part.sizes.double()).flatten()
        lost = (losses[:, None] + part.losses.double()).flatten()
        order = torch.from_numpy(np.lexsort((lost.numpy(), both.numpy())))
        before = lost[order].cummin(0).values.roll(1)
        before[0] = torch.inf
        order = order[lost[order] < before]
        if len(order) > POINTS:
            order = order[torch.linspace(0, len(order) - 1, POINTS).round().long()]
        first = order // len(part.sizes)
        second = order % len(part.sizes)
        sizes, losses = both[order], lost[order]
        picks = torch.cat((picks[first], second[:, None]), dim=1)
    return [
        (size, loss, tuple(zip(parts, chosen, strict=True)))
        for size, loss, chosen in zip(sizes.tolist(), losses.tolist(), picks.tolist(), strict=True)
    ]


def allocate(
    job: Job, options: Factorize, bought: list[Unit], measure: Measure | None = None
) -> Plan:
    """Return the plan that the allocator makes of the curves under the job's budget.

    measure: the true loss of a choice, for allocators that look at it.

    Raises:
        SpectrimError: what cannot be factored, or the smallest cuts, already exceed the budget.
    """
    curves = [unit.curve for unit in bought]
    budget = available(job, curves)
    choose: Callable[..., list[int]] = allocators.get(options.allocator)
    chosen = choose(curves, budget, measure)
    decisions = decided(bought, chosen)
    about = {
        "model": job.source.name,
        "fingerprint": job.source.fingerprint,
        "statistics": job.statistics_key,
        "method": options.method,
        "allocator": options.allocator,
        "format": options.format,
        "budget": {"keep": job.budget.fraction, "of": job.budget.of, "size": budget},
    }
    return Plan(decisions, sum(decision.predicted_loss for decision in decisions), about)


def decided(bought: list[Unit], chosen: list[int]) -> tuple[Decision, ...]:
    """Return the decisions that a choice of cuts means, in the order of the units."""
    return tuple(
        decision
        for unit, index in zip(bought, chosen, strict=True)
        for curve, at in unit.picked(index)
        for decision in curve.decisions(at)
    )


def available(job: Job, curves: list[Curve]) -> float:
    """Return what the sites that are bought may take together.

    Raises:
        SpectrimError: what cannot be factored, or the smallest cuts, already exceed the budget.
    """
    fraction, unit = job.budget.fraction, job.budget.of
    whole, outside = _taken(job, curves)
    least = sum(float(curve.sizes[0]) for curve in curves)
    if fraction * whole - outside < least:
        raise SpectrimError(
            f"cannot keep {fraction * 100:.4g}% of {unit}: what is not factored and the smallest "
            f"cuts take {(least + outside) / whole:.1%} already; keep more or protect less"
        )
    return fraction * whole - outside


def meets(job: Job, curves: list[Curve]) -> bool:
    """Return whether the smallest cuts of these curves are within the budget."""
    whole, outside = _taken(job, curves)
    return sum(float(curve.sizes[0]) for curve in curves) <= job.budget.fraction * whole - outside


def _taken(job: Job, curves: list[Curve]) -> tuple[float, float]:
    """Return what is 100% of the unit of the budget, and what of it is not for sale.

    A part is a part of the model as it came, whatever earlier stages have made of it.
    """
    unit = job.budget.of
    inside = sum(float(curve.sizes[-1]) for curve in curves)
    outside = job.weights.bytes() - inside if unit == "bytes" else 0.0
    return job.whole[unit] if job.whole else inside + outside, outside


def bought_units(job: Job, options: Factorize) -> list[Unit]:
    """Return what the allocator shares the budget among."""
    return units(job, read_curves(job, options))
