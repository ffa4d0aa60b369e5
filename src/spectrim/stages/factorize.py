"""Replace linear maps by factors: decompose every site, share the budget, cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.allocators import allocators
from spectrim.architectures import Stack
from spectrim.currency import currency_losses
from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, formats, from_factors
from spectrim.job import Job, key_of
from spectrim.methods import Damping, Decomposition, methods
from spectrim.options import Factorize
from spectrim.plan import Curve, Decision, Plan, thin
from spectrim.refinement import refine
from spectrim.run import atomic_file, locked
from spectrim.sites import Site, bias, weight
from spectrim.statistics import load_block


def factorize(job: Job, options: Factorize) -> None:
    """Decide how every site is stored and write the blocks so; ``job.plan`` says what was decided.

    A job that brings a plan has it carried out instead.

    Raises:
        SpectrimError: the budget cannot be met, or the plan does not fit the model.
    """
    if job.plan is None:  # what cannot be is said before the long work
        _budget(job, [_curve(job, options, site, _unknown(site)) for site in inner_sites(job)])
    else:
        job.plan.check(inner_sites(job))
        refuse_other(job, job.plan)
    decompose(job, options)
    curves = read_curves(job, options)
    refinement = options.refine
    if job.plan is None:
        job.plan = allocate(job, options, curves)
    else:
        job.plan = job.plan.restated(curves)
        refinement = "on" if job.plan.about.get("refined", True) else "off"
    job.curves = shown_curves(job, options, curves)
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


def inner_sites(job: Job) -> list[Site]:
    """Return the sites inside the blocks."""
    return [site for site in job.sites if site.block >= 0]


def decompositions(job: Job, options: Factorize) -> Path:
    """Return the folder of the cache that holds the decompositions these options ask for."""
    key = key_of(
        "decompositions", 2, job.statistics_key, options.method,
        options.damp_input, options.damp_gradient,
    )  # fmt: skip
    return job.cache / "decompositions" / key


def decompose(job: Job, options: Factorize) -> None:
    """Write the decomposition of every site to the cache, block by block, where it is missing."""
    folder = decompositions(job, options)
    statistics = job.statistics()
    blocks = job.each_block()
    for done, (stack, index) in enumerate(blocks, start=1):
        target = job.block_file(folder, stack, index)
        with locked(target):
            if not target.exists():
                known = load_block(statistics, stack, index)
                tensors = _decompose_block(job, options, stack, index, known)
                with atomic_file(target) as partial:
                    save_file(tensors, partial)
        job.progress(done, len(blocks), "decomposing")


def _decompose_block(
    job: Job, options: Factorize, stack: Stack, index: int, known: dict[str, Any]
) -> dict[str, Tensor]:
    method: Callable[..., Decomposition] = methods.get(options.method)
    damping = Damping(options.damp_input, options.damp_gradient)
    block = job.dense_block(stack, index)
    tensors: dict[str, Tensor] = {}
    for site in job.block_sites(stack, index):
        statistics = known[site.name]
        # an expert that no token was routed to keeps its weights
        if statistics.tokens == 0 or statistics.gradient_moment is None:
            continue
        module = block.get_submodule(site.name.removeprefix(f"{stack.path}.{index}."))
        matrix = weight(module).detach().float()
        decomposition = method(matrix, statistics, damping=damping)
        losses = decomposition.losses
        if not decomposition.in_nats:
            losses = currency_losses(decomposition, matrix, statistics, damping)
        tensors[f"{site.name}.left"] = decomposition.left.contiguous()
        tensors[f"{site.name}.right"] = decomposition.right.contiguous()
        tensors[f"{site.name}.values"] = decomposition.values.contiguous()
        tensors[f"{site.name}.losses"] = losses.contiguous()
    return tensors


def read_curves(job: Job, options: Factorize) -> list[Curve]:
    """Return the curve of every site inside the blocks, sizes in the unit of the budget."""
    folder = decompositions(job, options)
    curves = []
    for stack, index in job.each_block():
        with safe_open(job.block_file(folder, stack, index), framework="pt") as file:
            held = set(file.keys())
            for site in job.block_sites(stack, index):
                known = f"{site.name}.losses" in held
                losses = file.get_tensor(f"{site.name}.losses") if known else None
                curves.append(_curve(job, options, site, losses))
    return curves


def _unknown(site: Site) -> Tensor:
    return torch.zeros(min(site.out_features, site.in_features) + 1)


def shown_curves(job: Job, options: Factorize, curves: list[Curve]) -> dict[str, Any]:
    """Return what the report draws of every curve: ranks, sizes, losses, and singular values."""
    folder = decompositions(job, options)
    shown: dict[str, Any] = {curve.site.name: thin(curve) for curve in curves}
    for stack, index in job.each_block():
        with safe_open(job.block_file(folder, stack, index), framework="pt") as file:
            for site in job.block_sites(stack, index):
                if f"{site.name}.values" in file.keys():  # noqa: SIM118 (it is no mapping)
                    values = file.get_tensor(f"{site.name}.values")
                    ranks = [int(rank) for rank in shown[site.name]["ranks"]]
                    shown[site.name]["singular_values"] = [
                        float(f"{value:.4g}") for value in values[[rank - 1 for rank in ranks]]
                    ]
    return shown


def protected(site: Site, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern is found in the site's name, its role or its "block N"."""
    texts = (site.name, site.role, f"block {site.block}")
    return any(re.search(pattern, text) for pattern in patterns for text in texts)


def _curve(job: Job, options: Factorize, site: Site, losses: Tensor | None) -> Curve:
    """Return the cuts that are worth offering: those smaller than the matrix, then the matrix."""
    shape = (site.out_features, site.in_features)
    dense = torch.tensor([_dense_size(job, site)], dtype=torch.float64)
    full = torch.tensor([min(shape)])
    if losses is None or protected(site, options.protect):
        return Curve(site, full, dense, torch.zeros(1))
    ranks = torch.arange(options.rank_multiple, min(shape) + 1, options.rank_multiple)
    form: type[FactoredLinear] = formats.get(options.format)
    dtype, in_bytes = job.weights.dtype(), job.keep[1] == "bytes"
    sizes = torch.tensor(
        [
            form.bytes(*shape, rank, dtype) if in_bytes else form.numbers(*shape, rank)
            for rank in ranks.tolist()
        ],
        dtype=torch.float64,
    )
    smaller = sizes < dense
    return Curve(
        site,
        torch.cat((ranks[smaller], full)),
        torch.cat((sizes[smaller], dense)),
        torch.cat((losses[ranks[smaller]], torch.zeros(1))),
    )


def _dense_size(job: Job, site: Site) -> int:
    numbers = site.out_features * site.in_features
    return numbers * job.weights.dtype().itemsize if job.keep[1] == "bytes" else numbers


def allocate(job: Job, options: Factorize, curves: list[Curve]) -> Plan:
    """Return the plan that the allocator makes of the curves under the job's budget.

    Raises:
        SpectrimError: what cannot be factored, or the smallest cuts, already exceed the budget.
    """
    budget = _budget(job, curves)
    choose: Callable[[list[Curve], float], list[int]] = allocators.get(options.allocator)
    chosen = choose(curves, budget)
    decisions = tuple(
        _decision(options, curve, index) for curve, index in zip(curves, chosen, strict=True)
    )
    about = {
        "model": job.source.name,
        "fingerprint": job.source.fingerprint,
        "statistics": job.statistics_key,
        "method": options.method,
        "allocator": options.allocator,
        "format": options.format,
        "budget": {"keep": job.keep[0], "of": job.keep[1], "size": budget},
    }
    return Plan(decisions, sum(decision.predicted_loss for decision in decisions), about)


def _budget(job: Job, curves: list[Curve]) -> float:
    """Return what the sites inside the blocks may take together."""
    fraction, unit = job.keep
    inside = sum(float(curve.sizes[-1]) for curve in curves)
    outside = 0.0
    if unit == "bytes":
        outside = job.weights.bytes() - inside
    budget = fraction * (inside + outside) - outside
    least = sum(float(curve.sizes[0]) for curve in curves)
    if budget < least:
        raise SpectrimError(
            f"cannot keep {fraction * 100:.4g}% of {unit}: what is not factored and the smallest "
            f"cuts take {(least + outside) / (inside + outside):.1%} already; keep more or protect "
            "less"
        )
    return budget


def _decision(options: Factorize, curve: Curve, index: int) -> Decision:
    site = curve.site
    dense = index == len(curve.ranks) - 1
    numbers = site.out_features * site.in_features
    rank = int(curve.ranks[index])
    form: type[FactoredLinear] = formats.get(options.format)
    return Decision(
        site=site.name,
        block=site.block,
        role=site.role,
        out_features=site.out_features,
        in_features=site.in_features,
        format="dense" if dense else options.format,
        rank=rank,
        stored=numbers if dense else form.numbers(site.out_features, site.in_features, rank),
        dense=numbers,
        predicted_loss=float(curve.losses[index]),
    )


def cut(job: Job, options: Factorize) -> None:
    """Write every block as the plan says, continuing where an earlier run stopped."""
    assert job.plan is not None
    folder = decompositions(job, options)
    job.blocks = job.work / "cut"
    blocks = job.each_block()
    for done, (stack, index) in enumerate(blocks, start=1):
        if not job.block_file(job.blocks, stack, index).exists():
            pieces = load_file(job.block_file(folder, stack, index))
            block = job.dense_block(stack, index)
            factored = {
                site.name: _cut_site(job, job.plan[site.name], pieces, block, stack, index)
                for site in job.block_sites(stack, index)
                if job.plan[site.name].format != "dense"
            }
            job.write_block(job.blocks, stack, index, factored)
        job.progress(done, len(blocks), "cutting")


def _cut_site(
    job: Job,
    decision: Decision,
    pieces: dict[str, Tensor],
    block: nn.Module,
    stack: Stack,
    index: int,
) -> FactoredLinear:
    module = block.get_submodule(decision.site.removeprefix(f"{stack.path}.{index}."))
    name = decision.site
    if f"{name}.left" not in pieces:
        raise SpectrimError(
            f"the plan factors {name}, but no token of the calibration text came there; make it "
            "dense in the plan, or bring more text"
        )
    return from_factors(
        decision.format,
        pieces[f"{name}.left"][:, : decision.rank],
        pieces[f"{name}.right"][: decision.rank],
        bias(module),
        job.weights.dtype(),
    )
