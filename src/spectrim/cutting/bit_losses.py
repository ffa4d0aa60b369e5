"""What few bits cost, in nats: maps and some of their cuts quantised for real, block by block.

Or estimated, where that is asked for (bit_estimates.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.curve import Group
from spectrim.cutting.bit_estimates import estimated_losses
from spectrim.cutting.decompose import decompositions, pieces_of, reached
from spectrim.cutting.groups import centred, groups
from spectrim.files import atomic_file, key_of, locked
from spectrim.formats import make_format
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.model.sites import Site, bias
from spectrim.plan import Decision, left_dense
from spectrim.recipe.options import Factorize
from spectrim.rounding.few_bits import FORMATS, Rounding, narrowed, rounding_loss
from spectrim.walk.statistics import block_statistics

QUANTISED = (0.3, 0.7)  # of the full rank: the cuts that are quantised for real
RoundingLosses = dict[str, Tensor]
"""What rounding costs, in nats per token, by a group's key: of whole matrices [bits], of cuts
[quantised, bits]."""


def bit_losses(job: Job, options: Factorize) -> RoundingLosses:
    """Return what rounding costs, found out block by block and kept in the cache.

    Sites that no token of the calibration text came to are left out.
    """
    if not options.code_bits:
        return {}
    losses: RoundingLosses = {}
    places = job.each_block()
    kinds = ("", *(options.methods if options.cut else ()))  # whole matrices, then cuts
    for number, method in enumerate(kinds):
        for done, place in enumerate(places, start=1):
            file = job.block_file(_folder(job, options, method), place)
            with locked(file):
                if not file.exists():
                    with atomic_file(file) as partial:
                        save_file(_of_block(job, options, method, place), partial)
            losses |= load_file(file)
            total = len(kinds) * len(places)
            job.progress(number * len(places) + done, total, "measuring what bits cost")
    return losses


def grids(options: Factorize) -> list[Grid]:
    """Return the kinds of few bits that are offered."""
    return [Grid(bits, options.group, symmetric=False) for bits in options.code_bits]


def packable(group: Group) -> bool:
    """Return whether all that a method stores of a group can be packed."""
    return set(group.formats) <= set(FORMATS)


def quantised_ranks(group: Group) -> tuple[int, int]:
    """Return the two ranks of the first site at which cuts are quantised."""
    low, high = (max(1, round(part * group.full_rank)) for part in QUANTISED)
    return low, high


def _folder(job: Job, options: Factorize, method: str) -> Path:
    """Return where losses of a method's cuts are, or of whole matrices without a method."""
    cut_as = (method, options.format, centred(method, options), options.damp_input,
              options.damp_gradient) if method else ()  # fmt: skip
    how = [options.rounding_losses] * (options.rounding_losses != "measured")
    key = key_of("bits", 7, job.statistics_key, options.code_bits, options.group, cut_as, *how)
    return job.cache / "decompositions" / key


def _of_block(job: Job, options: Factorize, method: str, place: Place) -> RoundingLosses:
    sites = reached(job, place)
    if not method:
        block = _Block(job, options, place)
        return {group.key: block.whole(group) for group in map(Group.whole, sites)}
    offered = [group for group in groups(method, sites, options) if packable(group)]
    if not offered:
        return {}
    block = _Block(job, options, place)
    losses: RoundingLosses = {}
    for group in offered:
        each = [block.cut(group, rank) for rank in quantised_ranks(group)]
        if there := [one for one in each if one is not None]:
            losses[group.key] = torch.stack(there)
    return losses


class _Block:
    """A dense block whose maps are quantised one by one."""

    def __init__(self, job: Job, options: Factorize, place: Place) -> None:
        self.job, self.options, self.place = job, options, place
        self.statistics = block_statistics(job.statistics(), place)
        self.block = job.dense_block(place).float()
        grid = Grid(max(options.code_bits), options.group, symmetric=False)
        self.rounding = Rounding(grid, job.weights.dtype())

    def whole(self, group: Group) -> Float[Tensor, " bits"]:
        """Return what a site's matrix loses in each of the bits."""
        return self._losses(self._map(group.site), left_dense(group.site), None)

    def cut(self, group: Group, rank: int) -> Float[Tensor, " bits"] | None:
        """Return what rounding costs a cut of a group, None where there is no such cut."""
        total = torch.zeros(len(self.options.code_bits))
        folder = decompositions(self.job, self.options, group.method)
        file = self.job.block_file(folder, self.place)
        for site, name, own in zip(group.sites, group.formats, group.ranks(rank), strict=True):
            if not (pieces := pieces_of(file, site.name)):
                return None
            shape = (site.out_features, site.in_features, own)
            module = make_format(name, shape, pieces, bias(self._map(site)), torch.float32)
            decision = replace(left_dense(site), format=name, rank=own)
            order = pieces.get("order")
            total += self._losses(module, decision, None if order is None else order[:own])
        return total

    def _map(self, site: Site) -> nn.Module:
        return self.block.get_submodule(site.name.removeprefix(self.place.prefix))

    def _losses(
        self, module: nn.Module, decision: Decision, outputs: Tensor | None
    ) -> Float[Tensor, " bits"]:
        """Return what rounding a map costs; outputs: which it has, where they are fewer."""
        seen = narrowed(self.statistics[decision.site], module, outputs)
        if self.options.rounding_losses == "estimated":
            return estimated_losses(module, seen, grids(self.options), self.rounding.roots)
        losses = []
        for bits in self.options.code_bits:
            in_bits = replace(decision, bits=bits, group=self.options.group)
            losses.append(rounding_loss(self.job, self.rounding, module, in_bits, seen))
        return torch.tensor(losses)
