"""Sequential refinement: solve the second factor again on what the smaller model really delivers.

Behind cut blocks a site receives x' where the dense model delivers x. With the left factor U kept,
the right one is solved anew for min E‖G^½ (W x - U V x')‖² (docs/methods.md, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.formats import FactoredLinear, TwoFactors
from spectrim.job.blocks import write_block
from spectrim.job.job import Job
from spectrim.job.loss import search_loss
from spectrim.model.architectures import Place
from spectrim.text.tokens import Tokens
from spectrim.walk.moments import cholesky, damped, matmul_precision
from spectrim.walk.statistics import Statistics, block_statistics
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

SEQUENCES = 8  # of the calibration text; more cost time and change little
PRIOR = 1.0  # how much the moments of the whole calibration text count beside those of x'
SHIFT = 0.5  # 1 regresses on W x, 0 on W x'; full shift chases noise (SAES-SVD, 2602.03051)
DAMPING = 1e-2


@dataclass
class _Streams:
    """The same tokens behind the dense and behind the smaller blocks."""

    dense: Stream
    small: Stream


@dataclass
class _Crossed:
    """Moments of one input of a block: own = Σ x' x'ᵀ and across = Σ x x'ᵀ."""

    own: Tensor
    across: Tensor
    tokens: int = 0


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
    streams = _Streams(Stream(walk), Stream(walk))
    blocks = job.each_block()
    for done, place in enumerate(blocks, start=1):
        streams.dense, streams.small = streams.dense.reach(place), streams.small.reach(place)
        _refine_block(job, walk, streams, place, (cut, refined))
        job.progress(done, len(blocks), "refining")


def _refine_block(
    job: Job,
    walk: BlockWalk,
    streams: _Streams,
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
    wanted = _dense_inputs(walk, streams, place, dense, names)
    if names and not job.block_file(refined, place).exists():
        known = block_statistics(job.statistics(), place)
        for leader, group in wanted.groups.items():
            moments = _measure(walk, streams, place, small, wanted.inputs[leader], group)
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


@dataclass
class _Wanted:
    """What the dense block feeds its sites: inputs by leader and batch, sites by shared input."""

    inputs: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)


def _dense_inputs(
    walk: BlockWalk, streams: _Streams, place: Place, dense: nn.Module, names: list[str]
) -> _Wanted:
    """Run the dense block, carry its stream on, and return what its sites received."""
    wanted, behind = _Wanted(), {}
    for at in walk.starts:
        with catching(dense, names) as caught, torch.no_grad():
            behind[at] = streams.dense.run(dense, place, at)
        leaders: list[str] = []
        for name, x in caught.items():  # in the order in which the sites ran
            leader = next((other for other in leaders if caught[other] is x), name)
            if leader == name:
                leaders.append(name)
                wanted.inputs.setdefault(name, {})[at] = x
            if name not in (group := wanted.groups.setdefault(leader, [])):
                group.append(name)
    streams.dense = streams.dense.with_hidden(behind)
    return wanted


def _measure(
    walk: BlockWalk,
    streams: _Streams,
    place: Place,
    small: nn.Module,
    wanted: dict[int, Tensor],
    group: list[str],
) -> _Crossed:
    """Return the moments of the input that a group of sites shares in the smaller model."""
    moments: _Crossed | None = None
    for at in walk.starts:
        with catching(small, group, stop=True) as caught, torch.no_grad(), suppress(_Reached):
            streams.small.run(small, place, at)
        x = caught[group[0]]
        part = walk.architecture.stacks[0] if x is streams.small.encoded.get(at) else place.stack
        moments = _add(moments, wanted[at], x, walk.stack_mask(part, at).reshape(-1))
    assert moments is not None
    return moments


def _add(moments: _Crossed | None, dense: Tensor, small: Tensor, mask: Tensor) -> _Crossed:
    exact = small.dtype == torch.bfloat16
    x = dense.reshape(-1, dense.shape[-1])[mask].float()
    y = small.reshape(-1, small.shape[-1])[mask].float()
    with matmul_precision("medium" if exact else "highest"):
        own, across = y.T @ y, x.T @ y
    if moments is None:
        return _Crossed(own, across, len(y))
    return _Crossed(moments.own + own, moments.across + across, moments.tokens + len(y))


class _Reached(Exception):  # noqa: N818 (not an error)
    """The block has run as far as was needed."""


@contextmanager
def catching(
    block: nn.Module, names: list[str], *, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Keep the input of each named module while the context lasts; ``stop`` at the first one."""
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            caught[name] = args[0]
            if stop:
                raise _Reached

        return block.get_submodule(name).register_forward_pre_hook(hook)

    handles = [catch(name) for name in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _solve(module: TwoFactors, statistics: Statistics, moments: _Crossed) -> None:
    """Replace the right factor V by (Uᵀ G U)⁻¹ Uᵀ G W M (A')⁻¹, drawn towards the one it has.

    A cut leaves V = (Uᵀ G U)⁻¹ Uᵀ G W, best where x' = x, so neither W nor G is needed again. V
    also stands as the prior, with PRIOR times the moments of the whole calibration text; so few
    tokens cannot carry the solution away.
    """
    assert statistics.input_moment is not None
    right = module.right().detach().double()
    own = moments.own.double() / moments.tokens
    across = moments.across.double() / moments.tokens
    prior = PRIOR * damped(statistics.input_moment, DAMPING)
    wanted = SHIFT * across + (1 - SHIFT) * own + prior
    solved = torch.cholesky_solve((right @ wanted).T, cholesky(own + prior)).T
    module.right().data.copy_(solved)
