"""What few bits cost, in nats: maps and some of their cuts quantised for real, block by block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.cutting.decompose import decompositions, pieces_of, reached
from spectrim.cutting.groups import centred, format_of, forms_of, ranks_of, together
from spectrim.files import atomic_file, key_of, locked
from spectrim.formats import make_format
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.model.sites import Site, bias
from spectrim.plan import Decision, left_dense
from spectrim.recipe.options import Factorize
from spectrim.rounding.few_bits import FORMATS, Rounding, few_bits, narrowed
from spectrim.walk.statistics import load_block

TRIED = (0.3, 0.7)  # of the full rank: the cuts that are quantised for real
Sites = tuple[Site, ...]
Known = dict[str, Tensor]
"""By ``whole_key`` [bits], by ``cut_key`` [tried, bits]: what rounding costs, in nats per token."""


def bit_losses(job: Job, options: Factorize) -> Known:
    """Return what rounding costs, measured block by block and kept in the cache.

    Sites that no token of the calibration text came to are left out.
    """
    if not options.bits:
        return {}
    known: Known = {}
    places = job.each_block()
    parts = ("", *(options.methods if options.cut else ()))
    for number, method in enumerate(parts):
        for done, place in enumerate(places, start=1):
            file = job.block_file(_folder(job, options, method), place)
            with locked(file):
                if not file.exists():
                    with atomic_file(file) as partial:
                        save_file(_of_block(job, options, method, place), partial)
            known |= load_file(file)
            total = len(parts) * len(places)
            job.progress(number * len(places) + done, total, "measuring what bits cost")
    return known


def whole_key(site: Site) -> str:
    """Return under which name the losses of a site's whole matrix are."""
    return f"whole {site.name}"


def cut_key(method: str, sites: Sites) -> str:
    """Return under which name the losses of a method's cuts are."""
    return " ".join((method, *(site.name for site in sites)))


def packable(options: Factorize, method: str, sites: Sites) -> bool:
    """Return whether all that a method stores of these sites can be packed."""
    return all(format_of(options, method, one, at) in FORMATS for at, one in enumerate(sites))


def tried(options: Factorize, method: str, sites: Sites) -> tuple[int, int]:
    """Return the two ranks of the first site at which cuts are quantised."""
    full = full_rank(options, method, sites)
    low, high = (max(1, round(part * full)) for part in TRIED)
    return low, high


def full_rank(options: Factorize, method: str, sites: Sites) -> int:
    """Return the largest rank that the first site may have."""
    return forms_of(options, method, sites)[0].largest(sites[0].out_features, sites[0].in_features)


def _folder(job: Job, options: Factorize, method: str) -> Path:
    """Return where losses of a method's cuts are, or of whole matrices without a method."""
    how = (method, options.format, centred(options, method), options.damp_input,
           options.damp_gradient) if method else ()  # fmt: skip
    key = key_of("bits", 4, job.statistics_key, options.bits, options.group, how)
    return job.cache / "decompositions" / key


def _of_block(job: Job, options: Factorize, method: str, place: Place) -> Known:
    groups = [
        sites
        for sites in (together(method, reached(job, place)) if method else ())
        if packable(options, method, sites)
    ]
    if method and not groups:
        return {}
    block = _Block(job, options, place)
    if not method:
        return {whole_key(site): block.whole(site) for site in reached(job, place)}
    found: Known = {}
    for sites in groups:
        costs = [block.cut(method, sites, rank) for rank in tried(options, method, sites)]
        if known := [one for one in costs if one is not None]:
            found[cut_key(method, sites)] = torch.stack(known)
    return found


class _Block:
    """A dense block whose maps are quantised one by one."""

    def __init__(self, job: Job, options: Factorize, place: Place) -> None:
        self.job, self.options, self.place = job, options, place
        self.statistics = load_block(job.statistics(), place)
        self.block = job.dense_block(place).float()
        grid = Grid(max(options.bits), options.group, symmetric=False)
        self.rounding = Rounding(grid, job.weights.dtype())

    def whole(self, site: Site) -> Float[Tensor, " bits"]:
        """Return what a site's matrix loses in each of the bits."""
        return self._costs(self._map(site), left_dense(site), None)

    def cut(self, method: str, sites: Sites, rank: int) -> Float[Tensor, " bits"] | None:
        """Return what rounding costs a cut of sites together, None where there is none."""
        total = torch.zeros(len(self.options.bits))
        file = self.job.block_file(decompositions(self.job, self.options, method), self.place)
        ranks = ranks_of(forms_of(self.options, method, sites), sites, rank)
        for at, (site, own) in enumerate(zip(sites, ranks, strict=True)):
            if not (pieces := pieces_of(file, site.name)):
                return None
            name = format_of(self.options, method, site, at)
            shape = (site.out_features, site.in_features, own)
            made = make_format(name, shape, pieces, bias(self._map(site)), torch.float32)
            decision = replace(left_dense(site), format=name, rank=own)
            order = pieces.get("order")
            total += self._costs(made, decision, None if order is None else order[:own])
        return total

    def _map(self, site: Site) -> nn.Module:
        return self.block.get_submodule(site.name.removeprefix(self.place.prefix))

    def _costs(
        self, module: nn.Module, decision: Decision, outputs: Tensor | None
    ) -> Float[Tensor, " bits"]:
        """Return ½ tr(Δᵀ G Δ A) of rounding a map; outputs: which it has, where they are fewer."""
        seen = narrowed(self.statistics[decision.site], module, outputs)
        found = []
        for bits in self.options.bits:
            one = replace(decision, bits=bits, group=self.options.group)
            found.append(few_bits(self.job, self.rounding, module, one, seen)[1] or 0.0)
        return torch.tensor(found)
