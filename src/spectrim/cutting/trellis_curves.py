"""What a whole matrix costs with its columns as paths through a trellis, in nats, at every rate.

Some rows of each matrix are coded once, at RATE, on the even sequences, and priced on all
(moments.of_all_text). Errors of rows do not know of each other, so that each counts by its G_ii,
and the other rows lose as much for their size. At other rates all lose as Gaussian numbers do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.curve import Curve, Group
from spectrim.cutting.decompose import reached
from spectrim.errors import SpectrimError
from spectrim.files import atomic_file, key_of, locked
from spectrim.formats.packed.scales import Grid
from spectrim.formats.packed.trellis_matrix import LEAST, MOST, STATE_BITS, UNIT
from spectrim.job.job import Job, inner_sites
from spectrim.model.architectures import Place
from spectrim.model.sites import protected, weight
from spectrim.recipe.options import Factorize
from spectrim.rounding.trellis import Feedback, kernels, paths
from spectrim.walk.moments import Damping, damped, of_all_text
from spectrim.walk.statistics import Statistics, block_statistics

RATE = 32  # at which some rows are coded
ROWS = 160  # of a matrix at most that are
STEP = 2  # between the rates that are offered
GAPS = ((0.5, 0.124), (0.75, 0.1), (1, 0.083), (1.5, 0.082), (2, 0.091), (2.5, 0.106), (3, 0.118),
        (3.5, 0.146), (4, 0.175), (5, 0.215))  # fmt: skip
"""Bits a number, and how many more than the best code the trellis takes for Gaussian numbers,
½ log2 of its squared error over 2^-2R, measured on a matrix of 1536 x 64."""
PathLosses = dict[str, Tensor]
"""Nats per token at RATE, by the name of a site."""


def trellis_losses(job: Job, options: Factorize) -> PathLosses:
    """Return what paths cost, found out block by block and kept in the cache.

    Sites that no token of the calibration text came to are left out.
    """
    losses: PathLosses = {}
    places = job.each_block() if options.trellis else []
    for done, place in enumerate(places, start=1):
        file = job.block_file(_folder(job), place)
        with locked(file):
            if not file.exists():
                with atomic_file(file) as partial:
                    save_file(_of_block(job, place), partial)
        losses |= load_file(file)
        job.progress(done, len(places), "measuring what paths through a trellis cost")
    return losses


def trellis_curves(job: Job, options: Factorize, losses: PathLosses | None) -> list[Curve]:
    """Return curves of every site's whole matrix as paths.

    losses: None while nothing is coded yet; nothing then costs.

    Raises:
        SpectrimError: paths are to be offered, and no bits, or there are no compiled kernels.
    """
    if not options.trellis:
        return []
    kernels()
    if not options.bits:
        raise SpectrimError("factorize offers trellis beside bits; name some, such as bits: [4, 8]")
    return [
        _curve(job, Group.whole(site), None if losses is None else float(losses[site.name]))
        for site in inner_sites(job)
        if not protected(site, options.protect) and (losses is None or site.name in losses)
    ]


def squared_error(rate: int) -> float:
    """Return what is left of the variance of Gaussian numbers at a rate, bits of 16 numbers."""
    bits = rate / UNIT
    (low, below), (high, above) = next(
        pair for pair in zip(GAPS, GAPS[1:], strict=False) if bits <= pair[1][0]
    )
    gap = below + (above - below) * (bits - low) / (high - low)
    return float(2.0 ** (2 * (gap - bits)))


def _folder(job: Job) -> Path:
    return job.cache / "decompositions" / key_of("trellis", 5, job.statistics_key)


@torch.no_grad()
def _of_block(job: Job, place: Place) -> PathLosses:
    known = block_statistics(job.statistics(), place)
    block = job.dense_block(place).float()
    sites = reached(job, place)

    def loss(name: str) -> Tensor:
        matrix = weight(block.get_submodule(name.removeprefix(place.prefix))).detach()
        return torch.tensor(coded_loss(matrix, known[name], job.weights.dtype()))

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        return dict(
            zip(
                [site.name for site in sites],
                pool.map(loss, [site.name for site in sites]),
                strict=True,
            )
        )


def coded_loss(matrix: Float[Tensor, "out in"], known: Statistics, dtype: torch.dtype) -> float:
    """Return what paths at RATE are predicted to cost, nats per token."""
    chosen, odd = known if known.even is None else known.even, known.odd()
    if known.tokens == 0 or chosen.loss_inputs is None or chosen.gradient_moment is None:
        return 0.0
    some = torch.arange(0, len(matrix), -(-len(matrix) // ROWS))
    felt = chosen.gradient_moment[some][:, some]
    feedback = Feedback.of(chosen.loss_inputs)
    error = matrix[some].double() - paths(matrix[some], feedback, felt, RATE, dtype).values.double()
    own = _price(error, chosen, some)
    loss = own if odd is None else of_all_text(own, _price(error, odd, some))
    spare = STATE_BITS / len(some) - STATE_BITS / len(matrix)  # of a whole window, bits a number
    return float(loss * _part(matrix, known, some) * 2.0 ** (2 * spare))


def _price(error: Float[Tensor, "some in"], known: Statistics, some: Tensor) -> float:
    """Return ½ Σ_i G_ii e_iᵀ A_w e_i of some rows, nats per token."""
    assert known.loss_inputs is not None and known.gradient_moment is not None
    inputs = damped(known.loss_inputs, Damping().input)
    felt = damped(known.gradient_moment, Damping().gradient).diagonal()[some]
    return float(0.5 * felt @ ((error @ inputs) * error).sum(1))


def _part(matrix: Tensor, known: Statistics, some: Tensor) -> float:
    """Return how much more all rows weigh than some: rows of size and gradients together."""
    assert known.gradient_moment is not None
    weighs = known.gradient_moment.diagonal().double() * matrix.double().square().mean(1)
    return float(weighs.sum() / weighs[some].sum().clamp_min(torch.finfo(torch.float64).tiny))


def _curve(job: Job, group: Group, loss: float | None) -> Curve:
    dtype, site = job.weights.dtype(), group.site
    whole = float(site.out_features * site.in_features * dtype.itemsize)
    grids = [Grid(0, 0, False, rate) for rate in range(LEAST, MOST + 1, STEP)]
    sizes = [float(group.packed_bytes(group.full_rank, grid, dtype)) for grid in grids]
    there = [at for at, size in enumerate(sizes) if size < whole]
    losses = [
        0.0 if loss is None else loss * squared_error(grids[at].trellis) / squared_error(RATE)
        for at in there
    ]
    return Curve(
        (site,),
        torch.tensor([group.full_rank] * (len(there) + 1)),
        torch.tensor([*(sizes[at] for at in there), whole], dtype=torch.float64),
        torch.tensor([*losses, 0.0]),
        (group,) * len(there),
        grids=tuple(grids[at] for at in there),
    )
