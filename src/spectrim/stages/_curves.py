"""From what the methods offer to curves: sizes in the unit of the budget against losses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

import torch

from spectrim.formats import FactoredLinear, formats
from spectrim.job import Job
from spectrim.methods import methods
from spectrim.options import Factorize
from spectrim.plan import Curve, Decision, Plan
from spectrim.sites import Site
from spectrim.stages._decompose import Offer, centred, is_open, role_in, together

T = TypeVar("T")


def inner_sites(job: Job) -> list[Site]:
    """Return the sites inside the blocks."""
    return [site for site in job.sites if site.block >= 0]


def protected(site: Site, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern is found in the site's name, its role or its "block N"."""
    texts = (site.name, site.role, f"block {site.block}")
    return any(re.search(pattern, text) for pattern in patterns for text in texts)


def format_of(options: Factorize, method: str, site: Site, place: int = 0) -> str:
    """Return the format that a cut of a method is stored in; place: among sites cut together."""
    own = methods.constant(method, "FORMAT")
    if isinstance(own, dict):
        said = "others" if place else "first"
        return str(own[said if is_open(method) else role_in(method, site)])
    return str(own or options.format)


def forms_of(
    options: Factorize, method: str, sites: tuple[Site, ...]
) -> list[type[FactoredLinear]]:
    """Return the formats in which a method stores sites that it takes together."""
    return [formats.get(format_of(options, method, one, at)) for at, one in enumerate(sites)]


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


def ranks_of(forms: list[type[FactoredLinear]], sites: tuple[Site, ...], rank: int) -> list[int]:
    """Return the rank of each of the sites that are cut together, from that of the first.

    All keep the same part of the largest that each may have: where several query heads read one
    value head, o keeps as many times more inputs than v keeps outputs.
    """
    largest = [
        form.largest(site.out_features, site.in_features)
        for form, site in zip(forms, sites, strict=True)
    ]
    return [rank * one // largest[0] for one in largest]


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
            for sites in together(method, job.block_sites(*place)):
                form = formats.get(format_of(options, method, sites[0]))
                largest = form.largest(sites[0].out_features, sites[0].in_features)
                ranks = torch.arange(largest + 1)
                found.append(Offer(method, sites, ranks, torch.zeros(len(ranks)), None))
    return found


def dense_plan(job: Job) -> Plan:
    """Return the plan that leaves every site as it is."""
    about = {"model": job.source.name, "fingerprint": job.source.fingerprint}
    return Plan(tuple(left_dense(site) for site in inner_sites(job)), 0.0, about)


def left_dense(site: Site) -> Decision:
    """Return the decision that leaves a site as it is."""
    numbers = site.out_features * site.in_features
    return Decision(
        site=site.name,
        block=site.block,
        role=site.role,
        out_features=site.out_features,
        in_features=site.in_features,
        format="dense",
        rank=min(site.out_features, site.in_features),
        stored=numbers,
        dense=numbers,
        predicted_loss=0.0,
    )
