"""Replace linear maps by factors: decompose every site, share the budget, cut."""

from __future__ import annotations

from typing import Any

import torch

from spectrim.errors import SpectrimError
from spectrim.job import Job
from spectrim.options import Factorize
from spectrim.plan import Curve, Plan, thin
from spectrim.refinement import refine
from spectrim.stages._allocate import Unit, available, units
from spectrim.stages._curves import dense_curve, inner_sites, offered, unknown_offers
from spectrim.stages._cut import cut
from spectrim.stages._decompose import decompose, is_open, offers, together
from spectrim.stages._trial import planned
from spectrim.statistics import without_tokens


def factorize(job: Job, options: Factorize) -> None:
    """Decide how every site is stored and write the blocks so; ``job.plan`` says what was decided.

    A job that brings a plan has it carried out instead.

    Raises:
        SpectrimError: the budget cannot be met, or the plan does not fit the model.
    """
    if options.split_fused:
        job.split_fused()
    if job.plan is None:  # what cannot be is said before the long work
        possible = offered(job, options, unknown_offers(job, options))
        available(job, [unit.curve for unit in units(job, options, possible)])
    else:
        job.plan.check(inner_sites(job))
        refuse_other(job, job.plan)
        refuse_parted(job, job.plan)
    decompose(job, options)
    note_without_tokens(job)
    curves = read_curves(job, options)
    refinement = options.refine
    if job.plan is None:
        job.plan = planned(job, options, units(job, options, curves))
    else:
        job.plan = job.plan.restated(curves)
        refinement = "on" if job.plan.about.get("refined", True) else "off"
    job.curves = shown_curves(job, curves)
    cut(job, options)
    if refinement != "off":
        refine(job, always=refinement == "on")


def refuse_other(job: Job, plan: Plan) -> None:
    """Raise SpectrimError where a plan was made of another model or another calibration text."""
    made = {"fingerprint": job.source.fingerprint, "statistics": job.statistics_key}
    for what, key in (("model", "fingerprint"), ("calibration text", "statistics")):
        if plan.about.get(key, made[key]) != made[key]:
            raise SpectrimError(
                f"the plan was made with another {what}, so it cannot be replayed; "
                f"bring the same one, or take the entry '{key}' out of the plan"
            )


def refuse_parted(job: Job, plan: Plan) -> None:
    """Raise SpectrimError where a plan parts sites of a block that a method cuts together."""
    cut = {one.site: one for one in plan.decisions if one.format != "dense"}
    for method in {one.method for one in cut.values() if one.method}:
        for place in job.each_block():
            for sites in together(method, job.block_sites(*place)):
                ranks = {
                    site.name: cut[site.name].rank
                    for site in sites
                    if site.name in cut and cut[site.name].method == method
                }
                parted = len(ranks) < len(sites) and not is_open(method)
                if ranks and (parted or len(set(ranks.values())) > 1):
                    names = ", ".join(site.name for site in sites)
                    raise SpectrimError(
                        f"{method} cuts {names} together; give all of them the same rank in the "
                        "plan, or make all of them dense"
                    )


def note_without_tokens(job: Job) -> None:
    """Note which sites keep their weights because no token of the calibration text came there."""
    statistics = job.statistics()
    found = [name for place in job.each_block() for name in without_tokens(statistics, *place)]
    if found:
        job.notes["without_tokens"] = found


def read_curves(job: Job, options: Factorize) -> list[Curve]:
    """Return every curve that the methods offer, sizes in the unit of the budget."""
    return offered(job, options, offers(job, options))


def bought_units(job: Job, options: Factorize) -> list[Unit]:
    """Return what the allocator shares the budget among."""
    return units(job, options, read_curves(job, options))


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
