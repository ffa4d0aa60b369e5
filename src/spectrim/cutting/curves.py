"""From what the methods offer to curves: sizes in the unit of the budget against losses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from spectrim.curve import Curve, Group
from spectrim.cutting.decompose import Offer, offers
from spectrim.cutting.groups import groups
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job, inner_sites
from spectrim.model.sites import Site, protected
from spectrim.recipe.options import Factorize

T = TypeVar("T")


def offered(job: Job, options: Factorize, made: list[Offer]) -> list[Curve]:
    """Return one curve an offer, of those cuts that are smaller than the matrices, then these."""
    return [
        _curve(job, options, offer)
        for offer in made
        if not any(protected(site, options.protect) for site in offer.group.sites)
    ]


def envelope(curves: list[Curve]) -> Curve | None:
    """Return the best of several methods' curves of one site, None where there is none."""
    if len(curves) < 2:
        return curves[0] if curves else None
    cuts = [
        (float(curve.sizes[at]), float(curve.losses[at]), _Cut.of(curve, at))
        for curve in curves
        for at in range(len(curve.sizes) - 1)
    ]
    best = undominated(sorted(cuts, key=lambda one: (*one[:2], *one[2].order)))
    last = curves[0]
    return Curve(
        last.sites,
        torch.tensor([*(cut.rank for *_, cut in best), int(last.ranks[-1])]),
        torch.tensor([*(size for size, *_ in best), float(last.sizes[-1])], dtype=torch.float64),
        torch.tensor([*(loss for _, loss, _ in best), 0.0], dtype=torch.float64),
        tuple(cut.group for *_, cut in best),
        grids=tuple(cut.grid for *_, cut in best),
    )


@dataclass(frozen=True)
class _Cut:
    """A cut of a curve: what it is of, at which rank of the first site, in how many bits."""

    rank: int
    group: Group
    grid: Grid | None

    @classmethod
    def of(cls, curve: Curve, at: int) -> _Cut:
        grid = curve.grids[at] if curve.grids else None
        return cls(int(curve.ranks[at]), curve.groups[at], grid)

    @property
    def order(self) -> tuple[int, str, int]:
        """Return what decides between cuts of equal size and loss."""
        return self.rank, self.group.method, self.grid.bits if self.grid else 0


def undominated(points: Iterable[tuple[float, float, T]]) -> list[tuple[float, float, T]]:
    """Return the points (size, loss, what) by size, without those that a smaller one beats."""
    kept: list[tuple[float, float, T]] = []
    for point in sorted(points, key=lambda point: point[:2]):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def _curve(job: Job, options: Factorize, offer: Offer) -> Curve:
    group, ranks, losses = offer.group, offer.ranks, offer.losses
    step = options.rank_multiple if group.stepped else 1
    offers_it = (ranks > 0) & (ranks % step == 0)
    ranks, losses = ranks[offers_it], losses[offers_it]
    added = _added_biases(job, group)
    sizes = torch.tensor(
        [float(_size(job, group, int(rank)) + added) for rank in ranks], dtype=torch.float64
    )
    dense = sum(_dense_size(job, site) for site in group.sites)
    smaller = sizes < dense
    return Curve(
        group.sites,
        torch.cat((ranks[smaller], torch.tensor([group.full_rank]))),
        torch.cat((sizes[smaller], torch.tensor([dense], dtype=torch.float64))),
        torch.cat((losses[smaller], torch.zeros(1))),
        (group,) * int(smaller.sum()),
        offer.values,
    )


def _size(job: Job, group: Group, rank: int) -> int:
    return group.bytes(rank, job.weights.dtype()) if job.budget.in_bytes else group.numbers(rank)


def _added_biases(job: Job, group: Group) -> int:
    """Return the bytes of biases that maps get which had none; numbers leave biases out."""
    if not job.budget.in_bytes or not group.bias:
        return 0
    bare = [site for site in group.sites if not job.biased(site.name)]
    return sum(site.out_features for site in bare) * job.weights.dtype().itemsize


def dense_curve(job: Job, site: Site) -> Curve:
    """Return the curve of a site that is to stay as it is."""
    full = torch.tensor([min(site.out_features, site.in_features)])
    size = torch.tensor([_dense_size(job, site)], dtype=torch.float64)
    return Curve((site,), full, size, torch.zeros(1))


def _dense_size(job: Job, site: Site) -> int:
    numbers = site.out_features * site.in_features
    return numbers * job.weights.dtype().itemsize if job.budget.in_bytes else numbers


def unknown_offers(job: Job, options: Factorize) -> list[Offer]:
    """Return what may be offered before anything is decomposed: every rank, at no loss."""
    made = []
    for place in job.each_block():
        for method in options.methods:
            for group in groups(method, job.block_sites(place), options):
                ranks = torch.arange(group.full_rank + 1)
                made.append(Offer(group, ranks, torch.zeros(len(ranks))))
    return made


def read_curves(job: Job, options: Factorize) -> list[Curve]:
    """Return every curve that the methods offer, sizes in the unit of the budget."""
    return offered(job, options, offers(job, options)) if options.cut else []


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


def thin(curve: Curve, points: int = 64) -> dict[str, list[float]]:
    """Return at most ``points`` cuts of a curve, evenly spaced, the dense one last."""
    step = torch.linspace(0, len(curve.ranks) - 1, min(points, len(curve.ranks))).round().long()
    return {
        "ranks": curve.ranks[step].tolist(),
        "sizes": curve.sizes[step].tolist(),
        "losses": [float(f"{loss:.4g}") for loss in curve.losses[step].tolist()],
    }
