"""What a whole matrix costs as two factors of signs, in nats, at every rank.

Each matrix is fitted once, at a rank of BITS bits a weight, on the even sequences, and priced on
all (moments.of_all_text). At other ranks the loss is known from that one: it falls alike for all
matrices, by 1.3 powers of two a bit around one bit a weight and by 1.1 around 1.4, as was measured
for 13 maps of two blocks of a small Llama.
"""

from __future__ import annotations

from math import log
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.curve import Curve, Group
from spectrim.cutting.decompose import reached
from spectrim.files import atomic_file, key_of, locked
from spectrim.formats.binary_low_rank import SIGNS
from spectrim.job.job import Job, inner_sites
from spectrim.model.architectures import Place
from spectrim.model.sites import Site, protected, weight
from spectrim.recipe.options import Factorize
from spectrim.rounding.binary_factors import Metric, binary_factors
from spectrim.walk.moments import Damping, expected_loss, of_all_text
from spectrim.walk.statistics import Statistics, block_statistics

BITS = 0.8  # a weight, all scales included, at which a matrix is fitted
STEPS = 12  # of LB-ADMM; the fit that is delivered loses a tenth less
LEAST, MOST = 0.4, 2.6  # bits a weight that are offered; codes of three bits lose less from there
RANKS = 16  # offered ranks are multiples of it
STEADY, EARLY = 0.8, 0.45
"""Powers of two by which the loss falls with a bit b: STEADY + EARLY / b."""
SignLosses = dict[str, Tensor]
"""Nats per token at BITS, by the name of a site."""


def sign_losses(job: Job, options: Factorize) -> SignLosses:
    """Return what signs cost, fitted block by block and kept in the cache.

    Sites that no token of the calibration text came to are left out.
    """
    losses: SignLosses = {}
    places = job.each_block() if 1 in options.bits else []
    for done, place in enumerate(places, start=1):
        file = job.block_file(_folder(job), place)
        with locked(file):
            if not file.exists():
                with atomic_file(file) as partial:
                    save_file(_of_block(job, place), partial)
        losses |= load_file(file)
        job.progress(done, len(places), "measuring what signs cost")
    return losses


def sign_curves(job: Job, options: Factorize, losses: SignLosses | None) -> list[Curve]:
    """Return curves of every site's whole matrix as factors of signs.

    losses: None while nothing is fitted yet; nothing then costs.
    """
    if 1 not in options.bits:
        return []
    return [
        _curve(job, site, None if losses is None else float(losses[site.name]))
        for site in inner_sites(job)
        if not protected(site, options.protect) and (losses is None or site.name in losses)
    ]


def rank_of(site: Site, bits: float, dtype: torch.dtype) -> int:
    """Return the rank, a multiple of RANKS or the first, that takes about so many bits a weight."""
    weights, sides = site.out_features * site.in_features, site.out_features + site.in_features
    scale = 8 * dtype.itemsize
    rank = (bits * weights - scale * sides) / (sides + scale)
    return max(RANKS, round(rank / RANKS) * RANKS)


def factor(bits: float) -> float:
    """Return by what the loss of a matrix at BITS is to be multiplied at other bits a weight."""
    fall = STEADY * (bits - BITS) + EARLY * log(bits / BITS)
    return float(2.0**-fall)


def _folder(job: Job) -> Path:
    return job.cache / "decompositions" / key_of("signs", 1, job.statistics_key)


@torch.no_grad()
def _of_block(job: Job, place: Place) -> SignLosses:
    known = block_statistics(job.statistics(), place)
    block = job.dense_block(place).float()
    found = {}
    for site in reached(job, place):
        matrix = weight(block.get_submodule(site.name.removeprefix(place.prefix)))
        rank = rank_of(site, BITS, job.weights.dtype())
        found[site.name] = torch.tensor(fitted_loss(matrix.detach(), known[site.name], rank))
    return found


def fitted_loss(matrix: Tensor, known: Statistics, rank: int) -> float:
    """Return what factors of signs of a rank are predicted to cost, nats per token."""
    chosen, odd = known if known.even is None else known.even, known.odd()
    if chosen.loss_inputs is None:
        return 0.0
    metric = Metric.of(chosen.gradient_moment, chosen.loss_inputs, len(matrix))
    made = binary_factors(matrix, metric, rank, steps=STEPS, cycles=0).dense()
    own = expected_loss(matrix, made, chosen, Damping())
    return own if odd is None else of_all_text(own, expected_loss(matrix, made, odd, Damping()))


def _curve(job: Job, site: Site, loss: float | None) -> Curve:
    group, dtype = Group.whole(site), job.weights.dtype()
    weights = site.out_features * site.in_features
    ranks, sizes, losses = [], [], []
    for rank in range(rank_of(site, LEAST, dtype), rank_of(site, MOST, dtype) + 1, RANKS):
        size = group.packed_bytes(rank, SIGNS, dtype)
        if size >= weights * dtype.itemsize:
            break
        ranks.append(rank)
        sizes.append(float(size))
        losses.append(0.0 if loss is None else loss * factor(8 * size / weights))
    whole = float(weights * dtype.itemsize)
    return Curve(
        (site,),
        torch.tensor([*ranks, group.full_rank]),
        torch.tensor([*sizes, whole], dtype=torch.float64),
        torch.tensor([*losses, 0.0]),
        (group,) * len(ranks),
        grids=(SIGNS,) * len(ranks),
    )
