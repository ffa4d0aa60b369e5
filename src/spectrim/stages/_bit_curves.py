"""Bits as one more choice of the allocator: every cut, and the whole matrix, in each of them.

What few bits cost a site is measured, in nats, by quantising it for real: the whole matrix in each
of the bits, and two of its cuts, around which the cost of rounding is interpolated by rank. It
comes on top of what the cut itself costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.architectures import Stack
from spectrim.formats import TwoFactors, filled, formats
from spectrim.formats._quantized import Quantized
from spectrim.formats._rounding import Grid
from spectrim.job import Job, key_of
from spectrim.methods import methods
from spectrim.options import Factorize
from spectrim.plan import Curve, Decision
from spectrim.run import atomic_file, locked
from spectrim.sites import Site, bias
from spectrim.stages._curves import dense_curve, format_of, inner_sites, left_dense, protected
from spectrim.stages._decompose import decompositions, pieces_of, reached
from spectrim.stages._few_bits import Roots
from spectrim.stages.quantize import Options as Quantize
from spectrim.stages.quantize import few_bits
from spectrim.statistics import Statistics, load_block

TRIED = (0.3, 0.7)  # of the full rank: the cuts that are quantised for real
Known = dict[str, Float[Tensor, "tried bits"]]
"""By site: what rounding costs the whole matrix, and then the two cuts, in each of the bits."""


def in_few_bits(
    job: Job, options: Factorize, curves: list[Curve], known: Known | None
) -> list[Curve]:
    """Return curves of every site's whole matrix, and of its cuts, in each of the bits.

    Sites that are cut together have none, nor have formats that do not hold two factors.
    curves: what the methods offer. known: None while nothing is decomposed yet; nothing then costs.
    """
    if not options.bits:
        return []
    free = [site for site in inner_sites(job) if not protected(site, options.protect)]
    found = [
        _whole(job, options, site, None if known is None else known[site.name])
        for site in free
        if known is None or site.name in known
    ]
    for curve in curves:
        if options.cut and _has_two_factors(options, curve):
            costs = None if known is None else known.get(curve.site.name)
            if known is None or costs is not None:
                found.append(_cuts(job, options, curve, costs))
    return found


def bit_losses(job: Job, options: Factorize) -> Known:
    """Return what rounding costs every site, measured block by block and kept in the cache.

    Cuts are those of the first method that makes two factors of a site. Sites that no token of the
    calibration text came to are left out.
    """
    if not options.bits:
        return {}
    known: Known = {}
    places = job.each_block()
    for done, place in enumerate(places, start=1):
        file = job.block_file(_folder(job, options), *place)
        with locked(file):
            if not file.exists():
                with atomic_file(file) as partial:
                    save_file(_measured(job, options, place), partial)
        known |= load_file(file)
        job.progress(done, len(places), "measuring what bits cost")
    return known


def _folder(job: Job, options: Factorize) -> Path:
    key = key_of(
        "bits", 1, job.statistics_key, options.bits, options.group, options.method,
        options.format, options.cut, options.centre, options.damp_input, options.damp_gradient,
    )  # fmt: skip
    return job.cache / "decompositions" / key


def _measured(job: Job, options: Factorize, place: tuple[Stack, int]) -> Known:
    statistics = load_block(job.statistics(), *place)
    block, prefix = job.dense_block(*place).float(), f"{place[0].path}.{place[1]}."
    found: Known = {}
    roots: Roots = {}
    for site in reached(job, *place):
        module = block.get_submodule(site.name.removeprefix(prefix))
        tried = [(left_dense(site), module), *_cuts_tried(job, options, place, site, module)]
        costs = [
            [_cost(job, options, one, replace(decision, bits=bits, group=options.group),
                   statistics[site.name], roots) for bits in options.bits]
            for decision, one in tried
        ]  # fmt: skip
        found[site.name] = torch.tensor(costs)
    return found


def _cuts_tried(
    job: Job, options: Factorize, place: tuple[Stack, int], site: Site, module: nn.Module
) -> list[tuple[Decision, nn.Module]]:
    """Return the two cuts of a site that are tried; none where nothing makes two factors of it."""
    for method in options.methods if options.cut else ():
        name = format_of(options, method, site)
        if methods.constant(method, "ROLES") is None and issubclass(formats.get(name), TwoFactors):
            file = job.block_file(decompositions(job, options, method), *place)
            if pieces := pieces_of(file, site.name):
                shape = (site.out_features, site.in_features)
                return [
                    (replace(left_dense(site), format=name, rank=rank),
                     filled(name, (*shape, rank), pieces, bias(module), torch.float32))
                    for rank in _tried(site)
                ]  # fmt: skip
    return []


def _cost(
    job: Job,
    options: Factorize,
    module: nn.Module,
    decision: Decision,
    known: Statistics,
    roots: Roots,
) -> float:
    """Return ½ tr(Δᵀ G Δ A) of rounding a matrix, or the product of two factors."""
    loss = few_bits(job, Quantize(group=options.group), module, decision, known, roots)[1]
    return 0.0 if loss is None else loss


def _has_two_factors(options: Factorize, curve: Curve) -> bool:
    if len(curve.sites) > 1 or not curve.methods:
        return False
    return issubclass(formats.get(format_of(options, curve.methods[0], curve.site)), TwoFactors)


def _whole(job: Job, options: Factorize, site: Site, costs: Tensor | None) -> Curve:
    full = min(site.out_features, site.in_features)
    losses = torch.zeros(len(options.bits)) if costs is None else costs[0]
    cuts = [
        (full, _bytes(job, options, site, "dense", full, bits), float(loss), "", bits)
        for bits, loss in zip(options.bits, losses, strict=True)
    ]
    return _curve(job, site, cuts)


def _cuts(job: Job, options: Factorize, curve: Curve, costs: Tensor | None) -> Curve:
    site = curve.site
    name = format_of(options, curve.methods[0], site)
    cuts = []
    for place, bits in enumerate(options.bits):
        for at, rank in enumerate(curve.ranks[:-1].tolist()):
            added = 0.0 if costs is None else _between(costs[1:, place], site, rank)
            size = _bytes(job, options, site, name, rank, bits)
            cuts.append((rank, size, float(curve.losses[at]) + added, curve.methods[at], bits))
    return _curve(job, site, cuts)


def _curve(job: Job, site: Site, cuts: Sequence[tuple[int, float, float, str, int]]) -> Curve:
    """Return a curve of cuts (rank, size, loss, method, bits), the matrix as it is behind them."""
    whole = dense_curve(job, site)
    least = sorted((cut for cut in cuts if cut[1] < float(whole.sizes[0])), key=lambda cut: cut[1])
    ranks, sizes, losses, names, bits = zip(*least, strict=True) if least else ((),) * 5
    return Curve(
        (site,),
        torch.tensor([*ranks, int(whole.ranks[0])]),
        torch.tensor([*sizes, float(whole.sizes[0])], dtype=torch.float64),
        torch.tensor([*losses, 0.0]),
        names,
        bits=bits,
    )


def _between(costs: Float[Tensor, " tried"], site: Site, rank: int) -> float:
    """Return the cost of rounding at a rank, on the line through the two that were tried."""
    (low, high), (first, second) = _tried(site), costs.tolist()
    line: float = first + (second - first) * (rank - low) / max(high - low, 1)
    return max(line, min(float(first), float(second)) / 4)


def _tried(site: Site) -> tuple[int, int]:
    full = min(site.out_features, site.in_features)
    low, high = (max(1, round(part * full)) for part in TRIED)
    return low, high


def _bytes(job: Job, options: Factorize, site: Site, name: str, rank: int, bits: int) -> float:
    form: type[Quantized] = formats.get(f"quantized_{name}")
    shape = (site.out_features, site.in_features, rank)
    grid = Grid(bits, options.group, symmetric=False)
    return float(form.stored_bytes(shape, grid, job.weights.dtype()))
