"""Bits as one more choice of the allocator: every cut, and the whole matrix, in each of them.

What rounding costs is interpolated by rank around the cuts that were quantised for real
(bit_losses.py). It comes on top of what the cut itself costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.cutting.bit_losses import Known, Sites, cut_key, full_rank, packable, tried, whole_key
from spectrim.cutting.curves import dense_curve
from spectrim.cutting.groups import format_of, forms_of, ranks_of
from spectrim.formats import formats
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job, inner_sites
from spectrim.model.sites import Site, protected
from spectrim.plan import Curve
from spectrim.recipe.options import Factorize

Cut = tuple[int, float, float, str, int]
"""Rank, size, loss, method, bits."""


def in_few_bits(
    job: Job, options: Factorize, curves: list[Curve], known: Known | None
) -> list[Curve]:
    """Return curves of every site's whole matrix, and of all cuts, in each of the bits.

    Cuts in a format that cannot be packed have none. Sites that are cut together get the same bits.
    curves: what the methods offer. known: None while nothing is decomposed yet; nothing then costs.
    """
    if not options.bits:
        return []
    free = [site for site in inner_sites(job) if not protected(site, options.protect)]
    found = [
        _whole(job, options, site, None if known is None else known[whole_key(site)])
        for site in free
        if known is None or whole_key(site) in known
    ]
    for curve in curves:
        if options.cut and curve.methods and packable(options, curve.methods[0], curve.sites):
            costs = None if known is None else known.get(cut_key(curve.methods[0], curve.sites))
            if known is None or costs is not None:
                found.append(_cuts(job, options, curve, costs))
    return found


def _whole(job: Job, options: Factorize, site: Site, costs: Float[Tensor, " bits"] | None) -> Curve:
    full = min(site.out_features, site.in_features)
    losses = [0.0] * len(options.bits) if costs is None else costs.tolist()
    cuts = [
        (full, _bytes(job, options, ("dense",), (site,), (full,), bits), loss, "", bits)
        for bits, loss in zip(options.bits, losses, strict=True)
    ]
    return _curve(job, (site,), full, cuts)


def _cuts(
    job: Job, options: Factorize, curve: Curve, costs: Float[Tensor, "tried bits"] | None
) -> Curve:
    method, sites = curve.methods[0], curve.sites
    names = tuple(format_of(options, method, site, at) for at, site in enumerate(sites))
    forms = forms_of(options, method, sites)
    ranks = tried(options, method, sites)
    cuts = []
    for place, bits in enumerate(options.bits):
        for at, rank in enumerate(curve.ranks[:-1].tolist()):
            added = 0.0 if costs is None else _between(ranks, costs[:, place].tolist(), rank)
            size = _bytes(job, options, names, sites, ranks_of(forms, sites, rank), bits)
            cuts.append((rank, size, float(curve.losses[at]) + added, method, bits))
    return _curve(job, sites, full_rank(options, method, sites), cuts)


def _curve(job: Job, sites: Sites, full: int, cuts: Sequence[Cut]) -> Curve:
    """Return a curve of cuts, the matrices as they are behind them."""
    whole = sum(float(dense_curve(job, site).sizes[0]) for site in sites)
    least = sorted((cut for cut in cuts if cut[1] < whole), key=lambda cut: cut[1])
    ranks, sizes, losses, names, bits = zip(*least, strict=True) if least else ((),) * 5
    return Curve(
        sites,
        torch.tensor([*ranks, full]),
        torch.tensor([*sizes, whole], dtype=torch.float64),
        torch.tensor([*losses, 0.0]),
        names,
        bits=bits,
    )


def _between(ranks: tuple[int, int], costs: list[float], rank: int) -> float:
    """Return the cost of rounding at a rank, on the line through the two that were tried."""
    (low, high), (first, second) = ranks, costs
    line = first + (second - first) * (rank - low) / max(high - low, 1)
    return max(line, min(first, second) / 4)


def _bytes(
    job: Job,
    options: Factorize,
    names: Sequence[str],
    sites: Sites,
    ranks: Sequence[int],
    bits: int,
) -> float:
    grid, dtype = Grid(bits, options.group, symmetric=False), job.weights.dtype()
    total = 0
    for name, site, rank in zip(names, sites, ranks, strict=True):
        form: type[Quantized] = formats.get(f"quantized_{name}")
        total += form.stored_bytes((site.out_features, site.in_features, rank), grid, dtype)
    return float(total)
