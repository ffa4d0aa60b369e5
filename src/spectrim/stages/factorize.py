"""Replace linear maps by factors: decompose every site, share the budget, cut."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from spectrim.allocators import allocators
from spectrim.cutting.allocation import available, units
from spectrim.cutting.bit_curves import in_few_bits
from spectrim.cutting.bit_losses import bit_losses
from spectrim.cutting.curves import dense_curve, in_bytes, offered, read_curves, unknown_offers
from spectrim.cutting.cut import cut
from spectrim.cutting.decompose import decompose, reached
from spectrim.cutting.groups import centred, format_of, is_open, together
from spectrim.cutting.mixture import restored
from spectrim.cutting.refinement import refine
from spectrim.cutting.trial import planned
from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, formats, low_rank_formats
from spectrim.job.job import Job, inner_sites
from spectrim.methods import methods
from spectrim.model.architectures import Place
from spectrim.model.sites import Site
from spectrim.plan import Curve, Decision, Plan, thin
from spectrim.recipe.options import Factorize
from spectrim.recipe.order import BITS_SAVE_BYTES
from spectrim.walk.statistics import without_tokens

LEAVES = ("changed maps",)
CLEARS = ("damage if split_fused",)  # in other maps, to which nothing can be compared
REFUSES = {
    "changed maps": "factorize needs the maps as they came, and an earlier stage has changed them; "
    "put factorize first"
}
Options = Factorize


def factorize(job: Job, options: Factorize) -> None:
    """Decide how every site is stored and write the blocks so; ``job.plan`` says what was decided.

    A job that brings a plan has it carried out instead.

    Raises:
        SpectrimError: the budget cannot be met, or the plan does not fit the model.
    """
    if job.blocks is not None or "healed" in job.notes:
        raise SpectrimError(REFUSES["changed maps"])
    if options.split_fused:
        job.split_fused()
    if job.plan is None:  # what cannot be is said before the long work
        refuse_few_bits(job, options)
        possible = offered(job, options, unknown_offers(job, options)) if options.cut else []
        possible += in_few_bits(job, options, possible, None)
        available(job, [unit.curve for unit in units(job, options, possible)])
    else:
        job.plan = job.plan.named()
        refuse_unfit(job, job.plan)
        refuse_unmade(job, options, job.plan)
        refuse_parted(job, job.plan)
    if options.cut:
        decompose(job, options)
    note_without_tokens(job)
    curves = read_curves(job, options)
    refinement = options.refine
    if job.plan is None:
        offered_all = curves + in_few_bits(job, options, curves, bit_losses(job, options))
        job.plan = planned(job, options, offered_all)
        if options.bits:  # which the stage quantize gives them
            job.wanted = job.plan
            job.plan = restated(job, options, job.plan.unquantised())
    else:
        job.plan = restated(job, options, job.plan)
        refinement = "on" if job.plan.about.get("refined", True) else "off"
    job.curves = shown_curves(job, curves)
    cut(job, options)
    if refinement != "off":
        refine(job, always=refinement == "on")


def refuse_few_bits(job: Job, options: Factorize) -> None:
    """Raise SpectrimError where few bits are offered and cannot be bought or measured."""
    if not options.bits:
        if not options.cut:
            raise SpectrimError(
                "factorize without cuts has only bits to choose; name some, such as bits: [3, 4]"
            )
        return
    if not in_bytes(job):
        raise SpectrimError(BITS_SAVE_BYTES)
    if allocators.constant(options.allocator, "MEASURES"):
        raise SpectrimError(
            f"allocator '{options.allocator}' measures cuts before they are quantised; with bits "
            "take one that does not measure, such as 'global'"
        )


def refuse_unfit(job: Job, plan: Plan) -> None:
    """Raise SpectrimError where a plan is of another model or another calibration text."""
    plan.check(inner_sites(job))
    made = {"fingerprint": job.source.fingerprint, "statistics": job.statistics_key}
    for what, key in (("model", "fingerprint"), ("calibration text", "statistics")):
        if plan.about.get(key, made[key]) != made[key]:
            raise SpectrimError(
                f"the plan was made with another {what}, so it cannot be replayed; "
                f"bring the same one, or take the entry '{key}' out of the plan"
            )


def refuse_unmade(job: Job, options: Factorize, plan: Plan) -> None:
    """Raise SpectrimError where a plan wants a cut that no method of the recipe makes."""
    made = {method: possible(job, options, method) for method in options.methods}
    for one in plan.decisions:
        if one.format == "dense":
            continue
        if one.method not in made:
            raise SpectrimError(
                f"the plan cuts {one.site} by '{one.method}', but the recipe's method is "
                f"{options.method}; take that in the plan, or name the other in the recipe too"
            )
        if one.format not in (known := made[one.method].get(one.site, [])):
            made_here = f"makes {' or '.join(known)} of" if known else "does not cut"
            raise SpectrimError(
                f"the plan stores {one.site} as {one.format}, but {one.method} {made_here} it; "
                "change the format or the method in the plan, or make it dense"
            )


def possible(job: Job, options: Factorize, method: str) -> dict[str, list[str]]:
    """Return in which formats each site may be stored that a method cuts."""
    free = methods.constant(method, "FORMAT") is None  # any that holds two factors
    found: dict[str, list[str]] = {}
    for place in job.each_block():
        for sites in together(method, taken(job, method, place)):
            for at, site in enumerate(sites):
                own = format_of(options, method, site, at)
                found[site.name] = sorted({own, *low_rank_formats()}) if free else [own]
    return found


def taken(job: Job, method: str, place: Place) -> list[Site]:
    """Return the sites of a block among which a method finds those that it takes together."""
    return reached(job, place) if is_open(method) else job.block_sites(place)


def refuse_parted(job: Job, plan: Plan) -> None:
    """Raise SpectrimError where a plan parts sites of a block that a method cuts together."""
    cut = {one.site: one for one in plan.decisions if one.format != "dense"}
    for method in {one.method for one in cut.values() if one.method}:
        for place in job.each_block():
            for sites in together(method, taken(job, method, place)):
                ranks = {
                    site.name: _part(cut[site.name])
                    for site in sites
                    if site.name in cut and cut[site.name].method == method
                }
                needed = sites[:1] if is_open(method) else sites  # the first holds the basis
                parted = any(site.name not in ranks for site in needed)
                if ranks and (parted or len(set(ranks.values())) > 1):
                    names = ", ".join(site.name for site in sites)
                    raise SpectrimError(
                        f"{method} cuts {names} together; give all of them the same rank in the "
                        "plan (times as many as one has more heads), or make all of them dense"
                    )


def _part(decision: Decision) -> float:
    """Return a rank as a part of the largest that the map may have in its format."""
    form: type[FactoredLinear] = formats.get(decision.format)
    return decision.rank / form.largest(decision.out_features, decision.in_features)


def restated(job: Job, options: Factorize, plan: Plan) -> Plan:
    """Return a plan with what follows from its choices; it may cut any site, at any rank."""
    whole = options.model_copy(update={"protect": (), "rank_multiple": 1})
    curves = restored(read_curves(job, whole), plan.about)
    return plan.restated(curves, partial(centred, options))


def note_without_tokens(job: Job) -> None:
    """Note which sites keep their weights because no token of the calibration text came there."""
    statistics = job.statistics()
    found = [name for place in job.each_block() for name in without_tokens(statistics, place)]
    if found:
        job.notes["without_tokens"] = found


def shown_curves(job: Job, curves: list[Curve]) -> dict[str, Any]:
    """Return what the report draws of every site's first curve: ranks, sizes, losses, spectra."""
    shown: dict[str, Any] = {}
    for curve in [
        *sorted(curves, key=lambda one: len(one.sites)),
        *(dense_curve(job, site) for site in inner_sites(job)),
    ]:
        name = curve.site.name
        if name in shown:
            continue
        shown[name] = thin(curve)
        if curve.values is not None:
            ranks = torch.tensor(shown[name]["ranks"]).clamp(1, len(curve.values))
            values = curve.values[ranks - 1].tolist()
            shown[name]["singular_values"] = [float(f"{value:.4g}") for value in values]
    return shown
