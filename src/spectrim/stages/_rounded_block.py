"""A block whose maps are put in few bits, each for what those in front of it deliver."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import torch
from torch import Tensor, nn

from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.job.job import Job
from spectrim.model import sites
from spectrim.model.architectures import Place
from spectrim.plan import Decision
from spectrim.rounding.delivered import Delivered, DeliveredBlock
from spectrim.rounding.few_bits import Rounding, Target, few_bits, narrowed
from spectrim.walk.statistics import block_statistics


def rounded(
    job: Job,
    rounding: Rounding,
    place: Place,
    chosen: dict[str, Decision],
    block: nn.Module,
    walked: Delivered | None,
) -> dict[str, float | None]:
    """Put packed maps into a block; return what each is predicted to lose.

    chosen: decisions by site. walked: what rounded blocks deliver to this one, where that counts.
    """
    known = block_statistics(job.statistics(), place)
    losses: dict[str, float | None] = {}
    kept = _kept(block)
    walking = None if walked is None else _walking(job, place, chosen, walked)

    def made(path: str, target: Target | None) -> tuple[nn.Module, float | None]:
        module, one = block.get_submodule(path), chosen[place.prefix + path]
        seen = narrowed(known[one.site], module, kept.get(path.rpartition(".")[0]))
        return few_bits(job, rounding, module, one, seen, target)

    def target(path: str) -> Target | None:
        module = block.get_submodule(path)
        seen = narrowed(known[place.prefix + path], module, kept.get(path.rpartition(".")[0]))
        return None if walking is None else walking.target(path, module, seen)

    for paths in _alike(job, place, chosen, walking):
        targets = [target(path) for path in paths]
        if len(paths) > 1 and all(chosen[place.prefix + path].trellis for path in paths):
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                found = list(pool.map(made, paths, targets))
        else:  # by all threads together, which those of this thread are
            found = list(map(made, paths, targets))
        for path, (module, loss) in zip(paths, found, strict=True):
            losses[place.prefix + path] = loss
            sites.replace(block, path, module)
            if walking is not None:
                walking.put(path, module)
    return losses


def _alike(
    job: Job, place: Place, chosen: dict[str, Decision], walking: DeliveredBlock | None
) -> list[list[str]]:
    """Return the paths of a block's maps in order, those with one input together.

    They do not wait for each other, and a search for paths through a trellis takes one thread.
    """
    found = [
        site.name.removeprefix(place.prefix)
        for site in job.block_sites(place)
        if site.name in chosen
    ]
    leaders = {} if walking is None else walking.leader
    return [list(each) for _, each in groupby(found, lambda path: leaders.get(path, path))]


def _walking(
    job: Job, place: Place, chosen: dict[str, Decision], walked: Delivered
) -> DeliveredBlock:
    """Return the block to be rounded, its maps but those of experts, whose tokens differ."""
    names = [
        site.name.removeprefix(place.prefix)
        for site in job.block_sites(place)
        if site.name in chosen and not job.parts_experts(place.name, [site.name])
    ]
    return walked.block(place, names)


def _kept(block: nn.Module) -> dict[str, Tensor]:
    """Return which neurons the narrower MLPs of a block have, by the path of each MLP."""
    return {
        name.rpartition(".")[0]: module.places
        for name, module in block.named_modules()
        if type(module) is FewerInputs
    }
