"""Bits as one more choice of the allocator: every cut, and the whole matrix, in each of them.

What rounding costs is interpolated by rank around the cuts that were quantised for real
(bit_losses.py). It comes on top of what the cut itself costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.curve import Curve, Group
from spectrim.cutting.bit_losses import RoundingLosses, grids, packable, quantised_ranks
from spectrim.cutting.curves import dense_curve
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job, inner_sites
from spectrim.model.sites import protected
from spectrim.recipe.options import Factorize

Cut = tuple[int, int, float, Grid]
"""Rank, size in bytes, loss, bits."""


def in_few_bits(
    job: Job, options: Factorize, curves: list[Curve], rounding: RoundingLosses | None
) -> list[Curve]:
    """Return curves of every site's whole matrix, and of all cuts, in each of the bits.

    Cuts in a format that cannot be packed have none. Sites that are cut together get the same bits.
    curves: what the methods offer. rounding: None while nothing is decomposed yet; nothing then
    costs.
    """
    if not options.code_bits:
        return []
    whole = [Group.whole(site) for site in inner_sites(job) if not protected(site, options.protect)]
    packed = [
        _whole(job, options, group, None if rounding is None else rounding[group.key])
        for group in whole
        if rounding is None or group.key in rounding
    ]
    for curve in curves if options.cut else []:
        group = curve.groups[0] if curve.groups else None
        if group and packable(group) and (rounding is None or group.key in rounding):
            losses = None if rounding is None else rounding[group.key]
            packed.append(_cuts(job, options, curve, losses))
    return packed


def _whole(
    job: Job, options: Factorize, group: Group, rounding: Float[Tensor, " bits"] | None
) -> Curve:
    dtype, full = job.weights.dtype(), group.full_rank
    losses = [0.0] * len(options.code_bits) if rounding is None else rounding.tolist()
    cuts = [
        (full, group.packed_bytes(full, grid, dtype), loss, grid)
        for grid, loss in zip(grids(options), losses, strict=True)
    ]
    return _curve(job, group, cuts)


def _cuts(
    job: Job, options: Factorize, curve: Curve, rounding: Float[Tensor, "quantised bits"] | None
) -> Curve:
    group, dtype = curve.groups[0], job.weights.dtype()
    ends = quantised_ranks(group)
    cuts = []
    for place, grid in enumerate(grids(options)):
        for at, rank in enumerate(curve.ranks[:-1].tolist()):
            added = 0.0 if rounding is None else _between(ends, rounding[:, place].tolist(), rank)
            size = group.packed_bytes(rank, grid, dtype)
            cuts.append((rank, size, float(curve.losses[at]) + added, grid))
    return _curve(job, group, cuts)


def _curve(job: Job, group: Group, cuts: Sequence[Cut]) -> Curve:
    """Return a curve of cuts, the matrices as they are behind them."""
    whole = sum(float(dense_curve(job, site).sizes[0]) for site in group.sites)
    smaller = sorted((cut for cut in cuts if cut[1] < whole), key=lambda cut: cut[1])
    ranks, sizes, losses, kinds = zip(*smaller, strict=True) if smaller else ((),) * 4
    return Curve(
        group.sites,
        torch.tensor([*ranks, group.full_rank]),
        torch.tensor([*sizes, whole], dtype=torch.float64),
        torch.tensor([*losses, 0.0]),
        (group,) * len(ranks),
        grids=kinds,
    )


def _between(ends: tuple[int, int], losses: list[float], rank: int) -> float:
    """Return the loss of rounding at a rank, on the line through the two that were quantised."""
    (low, high), (first, second) = ends, losses
    line = first + (second - first) * (rank - low) / max(high - low, 1)
    return max(line, min(first, second) / 4)
