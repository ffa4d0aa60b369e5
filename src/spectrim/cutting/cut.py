"""Carry a plan out: blocks with formats in the place of matrices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.cutting.decompose import decompositions, pieces_of
from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, TwoFactors, formats, make_format
from spectrim.job.blocks import write_block
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.model.sites import bias, replace, weight
from spectrim.plan import Decision
from spectrim.recipe.options import Factorize
from spectrim.walk.statistics import Statistics, block_statistics


def cut(job: Job, options: Factorize) -> None:
    """Write every block as the plan says, continuing where an earlier run stopped."""
    assert job.plan is not None
    folder, blocks = job.work / "cut", job.each_block()
    for done, place in enumerate(blocks, start=1):
        if not job.block_file(folder, place).exists():
            block = job.dense_block(place)
            chosen = [
                decision
                for site in job.block_sites(place)
                if (decision := job.plan[site.name]).format != "dense"
            ]
            make = _maker(job, options, place, block, chosen)
            made = {one.site: make(one).to(job.weights.dtype()) for one in chosen}
            for site, module in made.items():
                replace(block, site.removeprefix(place.prefix), module)
            write_block(job, folder, place, block)
        job.progress(done, len(blocks), "cutting")
    job.blocks = folder


def try_out(
    job: Job,
    options: Factorize,
    place: Place,
    block: nn.Module,
    decisions: Iterable[Decision],
) -> nn.Module:
    """Return a copy of a dense block as decisions would leave it, for measuring what they cost.

    Products of two factors are multiplied out, which is quicker than storing them in their format.
    """
    prefix = place.prefix
    chosen = [one for one in of_block(decisions, place) if one.format != "dense"]
    tried = copy.deepcopy(block)
    make = _maker(job, options, place, block, chosen)
    for decision in chosen:
        path = decision.site.removeprefix(prefix)
        if issubclass(formats.get(decision.format), TwoFactors) and not decision.bias:
            pieces = _pieces(job, options, place, decision)
            product = pieces["left"][:, : decision.rank] @ pieces["right"][: decision.rank]
            weight(tried.get_submodule(path)).data.copy_(product)
        else:
            dtype = weight(block.get_submodule(path)).dtype
            replace(tried, path, make(decision).to(dtype))
    return tried


def of_block(decisions: Iterable[Decision], place: Place) -> tuple[Decision, ...]:
    """Return the decisions about the sites of one block."""
    prefix = place.prefix
    return tuple(one for one in decisions if one.site.startswith(prefix))


def _maker(
    job: Job,
    options: Factorize,
    place: Place,
    block: nn.Module,
    chosen: list[Decision],
) -> Callable[[Decision], FactoredLinear]:
    """Return what makes the format that a decision about this block asks for."""
    prefix = place.prefix
    known: Mapping[str, Statistics] = {}
    made_here: dict[str, Any] = {}
    if any(decision.bias for decision in chosen):
        known = block_statistics(job.statistics(), place)

    def make(decision: Decision) -> FactoredLinear:
        module = block.get_submodule(decision.site.removeprefix(prefix))
        pieces = _pieces(job, options, place, decision)
        shape = (decision.out_features, decision.in_features, decision.rank)
        own = bias(module)
        if decision.bias:
            own = torch.zeros(shape[0]) if own is None else own
        made = make_format(decision.format, shape, pieces, own, job.weights.dtype())
        made_here[decision.site] = made
        if decision.owner:  # which is made before it
            made_here[decision.site].link(made_here.get(decision.owner))
        if decision.bias:
            _make_up(made, weight(module), own, known[decision.site])
        return made

    return make


def _make_up(
    made: FactoredLinear, matrix: Tensor, own: Tensor | None, statistics: Statistics
) -> None:
    """Set the bias to b + (W - Ŵ) μ, so that the mean of the outputs stays what it was.

    With W' = V Vᵀ W this is V Vᵀ b + (I - V Vᵀ) ȳ (feature PCA, SFSD, 2405.13039, with ȳ as it is).
    """
    assert statistics.input_mean is not None and made.bias is not None and own is not None
    mean = statistics.input_mean.double()
    exact = copy.deepcopy(made).double()
    with torch.no_grad():
        missing = matrix.double() @ mean - exact.apply_factors(mean)
        made.bias.copy_(own.double() + missing)


def _pieces(job: Job, options: Factorize, place: Place, decision: Decision) -> dict[str, Tensor]:
    folder: Path = decompositions(job, options, decision.method)
    file = job.block_file(folder, place)
    pieces = pieces_of(file, decision.site)
    if not pieces:
        raise SpectrimError(
            f"the plan factors {decision.site}, but no token of the calibration text came there; "
            "make it dense in the plan, or bring more text"
        )
    if decision.owner:
        return {**pieces_of(file, decision.owner), **pieces}
    return pieces
