"""From what the methods offer to curves: sizes in the unit of the budget against losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch

from spectrim.cutting.decompose import Offer, offers
from spectrim.cutting.groups import (
    centred,
    format_of,
    forms_of,
    ranks_of,
    together,
)
from spectrim.formats import FactoredLinear, formats
from spectrim.job.job import Job
from spectrim.model.sites import Site, protected
from spectrim.plan import Curve
from spectrim.recipe.options import Factorize

T = TypeVar("T")


def offered(job: Job, options: Factorize, found: list[Offer]) -> list[Curve]:
    """Return one curve an offer, of those cuts that are smaller than the matrices, then these."""
    return [
        _curve(job, options, offer)
        for offer in found
        if not any(protected(site, options.protect) for site in offer.sites)
    ]


def envelope(curves: list[Curve]) -> Curve | None:
    """Return the best of several methods' curves of one site, None where there is none."""
    if len(curves) < 2:
        return curves[0] if curves else None
    points = sorted(
        (
            float(curve.sizes[at]),
            float(curve.losses[at]),
            (int(curve.ranks[at]), curve.methods[at], curve.bits[at] if curve.bits else 0),
        )
        for curve in curves
        for at in range(len(curve.sizes) - 1)
    )
    kept = undominated(points)
    last = curves[0]
    sizes, losses, cuts = zip(*kept, strict=True) if kept else ((), (), ())
    ranks, names, bits = zip(*cuts, strict=True) if cuts else ((), (), ())
    return Curve(
        last.sites,
        torch.tensor([*ranks, int(last.ranks[-1])]),
        torch.tensor([*sizes, float(last.sizes[-1])], dtype=torch.float64),
        torch.tensor([*losses, 0.0], dtype=torch.float64),
        tuple(names),
        bits=tuple(bits),
    )


def undominated(points: Iterable[tuple[float, float, T]]) -> list[tuple[float, float, T]]:
    """Return the points (size, loss, what) by size, without those that a smaller one beats."""
    kept: list[tuple[float, float, T]] = []
    for point in sorted(points, key=lambda point: point[:2]):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def _curve(job: Job, options: Factorize, offer: Offer) -> Curve:
    ranks, losses = offer.ranks, offer.losses
    forms = forms_of(options, offer.method, offer.sites)
    step = options.rank_multiple if all(form.stepped for form in forms) else 1
    offers_it = (ranks > 0) & (ranks % step == 0)
    ranks, losses = ranks[offers_it], losses[offers_it]
    added = _added_biases(job, options, offer)
    sizes = torch.tensor(
        [_size(job, forms, offer.sites, int(rank)) + added for rank in ranks], dtype=torch.float64
    )
    dense = sum(_dense_size(job, site) for site in offer.sites)
    smaller = sizes < dense
    full = forms[0].largest(offer.sites[0].out_features, offer.sites[0].in_features)
    return Curve(
        offer.sites,
        torch.cat((ranks[smaller], torch.tensor([full]))),
        torch.cat((sizes[smaller], torch.tensor([dense], dtype=torch.float64))),
        torch.cat((losses[smaller], torch.zeros(1))),
        (offer.method,) * int(smaller.sum()),
        offer.values,
    )


def _size(job: Job, forms: list[type[FactoredLinear]], sites: tuple[Site, ...], rank: int) -> float:
    shapes = [
        (site.out_features, site.in_features, own)
        for site, own in zip(sites, ranks_of(forms, sites, rank), strict=True)
    ]
    if in_bytes(job):
        dtype = job.weights.dtype()
        return sum(form.bytes(*shape, dtype) for form, shape in zip(forms, shapes, strict=True))
    return sum(form.numbers(*shape) for form, shape in zip(forms, shapes, strict=True))


def _added_biases(job: Job, options: Factorize, offer: Offer) -> int:
    """Return the bytes of biases that maps get which had none; numbers leave biases out."""
    if not in_bytes(job) or not centred(options, offer.method):
        return 0
    bare = [site for site in offer.sites if not job.biased(site.name)]
    return sum(site.out_features for site in bare) * job.weights.dtype().itemsize


def dense_curve(job: Job, site: Site) -> Curve:
    """Return the curve of a site that is to stay as it is."""
    full = torch.tensor([min(site.out_features, site.in_features)])
    size = torch.tensor([_dense_size(job, site)], dtype=torch.float64)
    return Curve((site,), full, size, torch.zeros(1))


def _dense_size(job: Job, site: Site) -> int:
    numbers = site.out_features * site.in_features
    return numbers * job.weights.dtype().itemsize if in_bytes(job) else numbers


def in_bytes(job: Job) -> bool:
    """Return whether sizes are bytes rather than numbers."""
    return job.keep[1] != "linear"


def unknown_offers(job: Job, options: Factorize) -> list[Offer]:
    """Return what may be offered before anything is decomposed: every rank, at no loss."""
    found = []
    for place in job.each_block():
        for method in options.methods:
            for sites in together(method, job.block_sites(place)):
                form = formats.get(format_of(options, method, sites[0]))
                largest = form.largest(sites[0].out_features, sites[0].in_features)
                ranks = torch.arange(largest + 1)
                found.append(Offer(method, sites, ranks, torch.zeros(len(ranks)), None))
    return found


def read_curves(job: Job, options: Factorize) -> list[Curve]:
    """Return every curve that the methods offer, sizes in the unit of the budget."""
    return offered(job, options, offers(job, options)) if options.cut else []
