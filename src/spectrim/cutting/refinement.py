"""Sequential refinement: solve the second factor again on what the smaller model really delivers.

Behind cut blocks a site receives x' where the dense model delivers x. With the left factor U kept,
the right one is solved anew for min E‖G^½ (W x - U V x')‖² (docs/methods.md, section 4).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from spectrim.formats import FactoredLinear, TwoFactors
from spectrim.job.blocks import write_block
from spectrim.job.job import Job
from spectrim.job.loss import search_loss
from spectrim.model.architectures import Place
from spectrim.text.tokens import Tokens
from spectrim.walk.crossed import Crossed, Streams, crossed, wanted_inputs
from spectrim.walk.moments import cholesky, damped
from spectrim.walk.statistics import Statistics, block_statistics
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

SEQUENCES = 8  # of the calibration text; more cost time and change little
PRIOR = 1.0  # how much the moments of the whole calibration text count beside those of x'
SHIFT = 0.5  # 1 regresses on W x, 0 on W x'; full shift chases noise (SAES-SVD, 2602.03051)
DAMPING = 1e-2


def refine(job: Job, *, always: bool) -> None:
    """Write refined blocks beside the cut ones, kept if they lower the loss on the search split.

    always: keep them in any case. ``job.notes["refinement"]`` says what was measured.
    """
    assert job.blocks is not None
    refined = job.work / "refined"
    _refine_blocks(job, job.blocks, refined)
    before = search_loss(job)
    after = search_loss(replace(job, blocks=refined))
    used = job.refined = always or after < before
    job.notes["refinement"] = {
        "used": used,
        "search_loss_before": before,
        "search_loss_after": after,
    }
    if used:
        job.blocks = refined


def _refine_blocks(job: Job, cut: Path, refined: Path) -> None:
    calibration = job.splits.calibration
    tokens = Tokens(calibration.ids[:SEQUENCES], calibration.mask[:SEQUENCES])
    walk = job.walk(tokens)
    streams = Streams(Stream(walk), Stream(walk))
    blocks = job.each_block()
    for done, place in enumerate(blocks, start=1):
        streams.dense, streams.small = streams.dense.reach(place), streams.small.reach(place)
        _refine_block(job, walk, streams, place, (cut, refined))
        job.progress(done, len(blocks), "refining")


def _refine_block(
    job: Job,
    walk: BlockWalk,
    streams: Streams,
    place: Place,
    folders: tuple[Path, Path],
) -> None:
    """Refine one block, its sites in the order in which they run, and carry both streams on."""
    cut, refined = folders
    dense = walk.block(place)
    small = job.stored_block(cut, place, walk.dtype)
    prefix = place.prefix
    modules = {n: m for n, m in small.named_modules() if isinstance(m, FactoredLinear)}
    names = [name for name in modules if _is_solvable(job, place, prefix + name, modules[name])]
    wanted = wanted_inputs(walk, streams, place, dense, names)
    if names and not job.block_file(refined, place).exists():
        known = block_statistics(job.statistics(), place)
        for leader, group in wanted.groups.items():
            moments = crossed(walk, streams, place, small, wanted.inputs[leader], group)
            for name in group:
                module = modules[name]
                assert isinstance(module, TwoFactors)
                _solve(module, known[prefix + name], moments)
    if not job.block_file(refined, place).exists():
        write_block(job, refined, place, small)
    small = job.stored_block(refined, place, walk.dtype)
    streams.small = streams.small.behind(small, place)


def _is_solvable(job: Job, place: Place, site: str, module: FactoredLinear) -> bool:
    """Return whether a second factor can be solved for.

    An expert's tokens differ between the streams, so there is nothing to regress on; and a bias
    that makes up for the mean of the dense inputs belongs to the factor as it was cut.
    """
    assert job.plan is not None
    if not isinstance(module, TwoFactors) or job.plan[site].bias:
        return False
    return not job.parts_experts(place.name, [site])


def _solve(module: TwoFactors, statistics: Statistics, moments: Crossed) -> None:
    """Replace the right factor V by (Uᵀ G U)⁻¹ Uᵀ G W M (A')⁻¹, drawn towards the one it has.

    A cut leaves V = (Uᵀ G U)⁻¹ Uᵀ G W, best where x' = x, so neither W nor G is needed again. V
    also stands as the prior, with PRIOR times the moments of the whole calibration text, brought to
    the size of those of x'; so few tokens cannot carry the solution away.
    """
    assert statistics.input_moment is not None
    right = module.right().detach().double()
    own = moments.own.double() / moments.tokens
    across = moments.across.double() / moments.tokens
    known = damped(statistics.input_moment, DAMPING)
    prior = PRIOR * known * (own.diagonal().mean() / known.diagonal().mean())
    wanted = SHIFT * across + (1 - SHIFT) * own + prior
    solved = torch.cholesky_solve((right @ wanted).T, cholesky(own + prior)).T
    module.right().data.copy_(solved)
