"""Plans that are replayed, maybe edited: what cannot be is refused, what follows is restated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spectrim.curve import Curve, Group
from spectrim.cutting.curves import read_curves
from spectrim.cutting.decompose import reached
from spectrim.cutting.groups import centred, groups, open_ended
from spectrim.cutting.mixture import restored
from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, formats, low_rank_formats
from spectrim.job.job import Job
from spectrim.methods import methods
from spectrim.model.architectures import Place
from spectrim.model.sites import Site
from spectrim.plan import Decision, Plan
from spectrim.recipe.options import Factorize


def replayable(job: Job, options: Factorize, plan: Plan) -> Plan:
    """Return a plan with a method for every cut, after a look at whether it can be carried out.

    Raises:
        SpectrimError: the plan is of another model or text, wants a cut that no method of the
            recipe makes, or parts sites that a method cuts together.
    """
    plan = named(plan)
    refuse_unfit(job, plan)
    refuse_unmade(job, options, plan)
    refuse_parted(job, options, plan)
    return plan


def named(plan: Plan) -> Plan:
    """Return a plan with a method for every cut, the first of those that made the plan."""
    first = str(plan.about.get("method", "")).partition(",")[0]
    decisions = tuple(
        one if one.method or one.format == "dense" else replace(one, method=first)
        for one in plan.decisions
    )
    return replace(plan, decisions=decisions)


def refuse_unfit(job: Job, plan: Plan) -> None:
    """Raise SpectrimError where a plan is of another model or another calibration text."""
    named_here = {one.site for one in plan.decisions}
    check(plan, [site for site in job.sites if site.block >= 0 or site.name in named_here])
    needed = {"fingerprint": job.source.fingerprint, "statistics": job.statistics_key}
    for what, key in (("model", "fingerprint"), ("calibration text", "statistics")):
        if plan.about.get(key, needed[key]) != needed[key]:
            raise SpectrimError(
                f"the plan was made with another {what}, so it cannot be replayed; "
                f"bring the same one, or take the entry '{key}' out of the plan"
            )


def check(plan: Plan, sites: list[Site]) -> None:
    """Raise SpectrimError where a plan does not fit these sites or their shapes."""
    for name in {one.format for one in plan.decisions} - {"dense"}:
        formats.check(name)
    shapes = {site.name: (site.out_features, site.in_features) for site in sites}
    for decision in plan.decisions:
        shape = shapes.pop(decision.site, None)
        if shape != (decision.out_features, decision.in_features):
            raise SpectrimError(
                f"the plan does not fit the model: {decision.site} is "
                f"{decision.out_features} x {decision.in_features} in the plan and "
                + (f"{shape[0]} x {shape[1]} in the model" if shape else "not in the model")
            )
        _check_rank(decision)
    if shapes:
        raise SpectrimError(f"the plan says nothing about {next(iter(shapes))}")


def _check_rank(decision: Decision) -> None:
    shape = (decision.out_features, decision.in_features)
    form = None if decision.format == "dense" else formats.get(decision.format)
    largest = form.largest(*shape) if form else min(shape)
    if not 0 < decision.rank <= largest:
        raise SpectrimError(
            f"the plan gives {decision.site} rank {decision.rank}; expected 1 to {largest}"
            + _excess(decision, form)
        )


def _excess(decision: Decision, form: type[FactoredLinear] | None) -> str:
    """Return what a rank that is too large would store, where that is more than the matrix."""
    shape = (decision.out_features, decision.in_features)
    numbers = form.numbers(*shape, decision.rank) if form and decision.rank > 0 else 0
    dense = shape[0] * shape[1]
    excess = f": as {decision.format} it would store {numbers} numbers, the matrix {dense}"
    return excess if numbers > dense else ""


def refuse_unmade(job: Job, options: Factorize, plan: Plan) -> None:
    """Raise SpectrimError where a plan wants a cut that no method of the recipe makes."""
    by_method = {method: possible_formats(job, options, method) for method in options.methods}
    for one in plan.decisions:
        if one.format == "dense":
            continue
        if one.method not in by_method:
            raise SpectrimError(
                f"the plan cuts {one.site} by '{one.method}', but the recipe's method is "
                f"{options.method}; take that in the plan, or name the other in the recipe too"
            )
        possible = by_method[one.method].get(one.site, [])
        if one.format not in possible:
            makes = f"makes {' or '.join(possible)} of" if possible else "does not cut"
            raise SpectrimError(
                f"the plan stores {one.site} as {one.format}, but {one.method} {makes} it; "
                "change the format or the method in the plan, or make it dense"
            )


def possible_formats(job: Job, options: Factorize, method: str) -> dict[str, list[str]]:
    """Return in which formats each site may be stored that a method cuts."""
    free = methods.constant(method, "FORMAT") is None  # any that holds two factors
    possible: dict[str, list[str]] = {}
    for place in job.each_block():
        for group in _groups(job, options, method, place):
            for site, own in zip(group.sites, group.formats, strict=True):
                possible[site.name] = sorted({own, *low_rank_formats()}) if free else [own]
    return possible


def refuse_parted(job: Job, options: Factorize, plan: Plan) -> None:
    """Raise SpectrimError where a plan parts sites of a block that a method cuts together."""
    cut = {one.site: one for one in plan.decisions if one.format != "dense"}
    for method in {one.method for one in cut.values() if one.method}:
        for place in job.each_block():
            for group in _groups(job, options, method, place):
                parts = {
                    site.name: _part_of_full_rank(cut[site.name])
                    for site in group.sites
                    if site.name in cut and cut[site.name].method == method
                }
                # the first holds the basis, which the others may do without
                needed = group.sites[:1] if open_ended(method) else group.sites
                parted = any(site.name not in parts for site in needed)
                if parts and (parted or len(set(parts.values())) > 1):
                    names = ", ".join(site.name for site in group.sites)
                    raise SpectrimError(
                        f"{method} cuts {names} together; give all of them the same rank in the "
                        "plan (times as many as one has more heads), or make all of them dense"
                    )


def _groups(job: Job, options: Factorize, method: str, place: Place) -> list[Group]:
    """Return the groups of a block; where a group takes all that fit, of the sites with tokens."""
    sites = reached(job, place) if open_ended(method) else job.block_sites(place)
    return groups(method, sites, options)


def _part_of_full_rank(decision: Decision) -> float:
    """Return a rank as a part of the largest that the map may have in its format."""
    form: type[FactoredLinear] = formats.get(decision.format)
    return decision.rank / form.largest(decision.out_features, decision.in_features)


def restated(job: Job, options: Factorize, plan: Plan) -> Plan:
    """Return a plan with what follows from its choices; it may cut any site, at any rank."""
    whole = options.model_copy(update={"protect": (), "rank_multiple": 1})
    curves = restored(read_curves(job, whole), plan.about)
    bias = {method: centred(method, options) for method in options.methods}
    return with_consequences(plan, curves, bias)


def with_consequences(plan: Plan, curves: list[Curve], bias: dict[str, bool]) -> Plan:
    """Return a plan with all that follows from its choices, after an edit of them.

    A rank between two cuts of its curve is predicted to lose what the smaller one does.
    bias: by method, whether biases make up for the mean of the inputs.
    """
    by_first = {(one.site.name, method): one for one in curves for method in one.methods}
    owners = {
        (site.name, method): curve.site.name
        for curve in curves
        for method in curve.methods
        for site in curve.sites
    }
    decisions = []
    for one in plan.decisions:
        if one.format == "dense":
            decisions.append(_dense(one))
            continue
        of = (one.site, one.method)
        consequences: dict[str, Any] = {
            # others than the first carry none of a group's loss
            "predicted_loss": _loss_at(by_first[of], one.rank) if of in by_first else 0.0,
            "bias": bias[one.method],
            "owner": owners.get(of, "") if formats.get(one.format).follows else "",
        }
        decisions.append(replace(_counted(one), **consequences))
    total = sum(one.predicted_loss for one in decisions)
    return replace(plan, decisions=tuple(decisions), predicted_loss=total)


def _loss_at(curve: Curve, rank: int) -> float:
    cuts = curve.ranks[:-1]  # the dense one may have the rank of a cut
    return float(curve.losses[max(int((cuts <= rank).sum()) - 1, 0)])


def _counted(decision: Decision) -> Decision:
    """Return a decision with the numbers that it and the matrix store."""
    form: type[FactoredLinear] = formats.get(decision.format)
    shape = (decision.out_features, decision.in_features)
    return replace(decision, stored=form.numbers(*shape, decision.rank), dense=shape[0] * shape[1])


def _dense(decision: Decision) -> Decision:
    whole = decision.out_features * decision.in_features
    return replace(
        decision,
        rank=min(decision.out_features, decision.in_features),
        stored=whole,
        dense=whole,
        predicted_loss=0.0,
        method="",
        bias=False,
        owner="",
    )
