"""What the methods make of every site, kept in the cache: one folder a method, one file a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spectrim.curve import Group
from spectrim.cutting.currency import currency_losses
from spectrim.cutting.groups import centred, groups, needs
from spectrim.cutting.held_out import Prices, held_out_prices, priced_apart, scaled
from spectrim.cutting.samples import sampled
from spectrim.files import atomic_file, key_of, locked
from spectrim.job.job import Job
from spectrim.methods import Decomposition, methods
from spectrim.methods.loss_aware_svd import loss_aware_svd
from spectrim.model.architectures import Place
from spectrim.model.sites import Site, bias, weight
from spectrim.recipe.options import Factorize
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics, block_statistics, without_tokens

ROUNDING = 1e-6  # part of a float32 moment that is no more than rounding
CURVE = ("ranks", "losses", "values")  # of a decomposition; everything else in a file is pieces


@dataclass(frozen=True)
class Offer:
    """The curve that a method offers for a group of sites."""

    group: Group
    ranks: Tensor
    losses: Tensor
    values: Tensor | None = None


def decompositions(job: Job, options: Factorize, method: str) -> Path:
    """Return the folder of the cache that holds what a method makes of the model."""
    key = key_of(
        "decompositions", 7, job.statistics_key, method,
        options.damp_input, options.damp_gradient, centred(method, options),
    )  # fmt: skip
    return job.cache / "decompositions" / key


def decompose(job: Job, options: Factorize) -> None:
    """Write the decomposition of every site to the cache, block by block, where it is missing."""
    statistics = job.statistics()
    blocks = job.each_block()
    for number, method in enumerate(options.methods):
        folder = decompositions(job, options, method)
        inputs = _samples(job, method, folder)
        for done, place in enumerate(blocks, start=1):
            target = job.block_file(folder, place)
            sampled_here = next(inputs)
            with locked(target):
                if not target.exists():
                    block = _Block(job, options, place, block_statistics(statistics, place))
                    tensors = block.decomposed(method, sampled_here or {})
                    with atomic_file(target) as partial:
                        save_file(tensors, partial)
            total = len(options.methods) * len(blocks)
            job.progress(number * len(blocks) + done, total, "decomposing")


def _samples(job: Job, method: str, folder: Path) -> Iterator[dict[str, Tensor] | None]:
    """Return the inputs of every block in turn; None where the method or the cache needs none."""
    wanted: int | None = methods.constant(method, "SAMPLES")
    done = all(job.block_file(folder, place).exists() for place in job.each_block())
    return repeat(None) if wanted is None or done else sampled(job, wanted)


def offers(job: Job, options: Factorize) -> list[Offer]:
    """Return every curve that the methods offer, in the order of the sites.

    Copied, as a view would keep the whole file of a block in the address space.
    """
    made: list[Offer] = []
    for place in job.each_block():
        for method in options.methods:
            file = job.block_file(decompositions(job, options, method), place)
            with safe_open(file, framework="pt") as held:
                keys = set(held.keys())
                for group in groups(method, reached(job, place), options):
                    curve = {
                        part: held.get_tensor(name).clone()
                        for part in CURVE
                        if (name := f"{group.site.name}.{part}") in keys
                    }
                    if "losses" in curve:
                        made.append(Offer(group, **curve))
    return made


def pieces_of(file: Path, site: str) -> dict[str, Tensor]:
    """Return the pieces of one site in a file of decompositions; none where it was left out."""
    with safe_open(file, framework="pt") as held:
        names = [key for key in held.keys() if key.startswith(f"{site}.")]  # noqa: SIM118
        return {
            key.removeprefix(f"{site}."): held.get_tensor(key)
            for key in names
            if key.removeprefix(f"{site}.") not in CURVE
        }


def reached(job: Job, place: Place) -> list[Site]:
    """Return the sites of a block that tokens came to; an expert without keeps its weights."""
    left = without_tokens(job.statistics(), place)
    return [site for site in job.block_sites(place) if site.name not in left]


class _Block:
    """A dense block whose maps are decomposed, group by group."""

    def __init__(
        self, job: Job, options: Factorize, place: Place, known: Mapping[str, Statistics]
    ) -> None:
        self.job, self.options, self.place, self.known = job, options, place, known
        self.block = job.dense_block(place)
        self.damping = Damping(options.damp_input, options.damp_gradient)

    def decomposed(self, method: str, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what a method makes of the block, by names of sites; samples: inputs of sites.

        Prices that could not be had on other text than the fit are scaled as those that could be.
        """
        tensors: dict[str, Tensor] = {}
        factors: list[Tensor] = []
        unpriced: list[tuple[Group, Tensor, Tensor]] = []
        for group in groups(method, reached(self.job, self.place), self.options):
            known = [self._statistics(group, site, samples) for site in group.sites]
            if methods.constant(method, "SAMPLES") and any(one.samples is None for one in known):
                continue
            decomposition = self._made(group, known)
            prices = self._prices(group, decomposition)
            if prices is not None:
                decomposition = replace(decomposition, losses=prices.of_all_text())
                factors.append(prices.factors())
            elif not methods.constant(method, "BLIND"):
                unpriced.append((group, decomposition.ranks, decomposition.losses))
            for part in CURVE:
                if (tensor := getattr(decomposition, part)) is not None:
                    tensors[f"{group.site.name}.{part}"] = tensor.contiguous()
            tensors |= _named(group, decomposition.pieces)
        for group, ranks, losses in unpriced:
            like = factors or self._factors(group)
            scaled_ = scaled(losses, ranks / group.full_rank, like)
            tensors[f"{group.site.name}.losses"] = scaled_.contiguous()
        return tensors

    def _statistics(self, group: Group, site: Site, samples: dict[str, Tensor]) -> Statistics:
        known = replace(self.known[site.name], samples=samples.get(site.name))
        return centred_at(known, known.input_mean) if group.bias else known

    def _matrix(self, site: Site) -> Tensor:
        return weight(self._module(site)).detach().float()

    def _module(self, site: Site) -> nn.Module:
        return self.block.get_submodule(site.name.removeprefix(self.place.prefix))

    def _prices(self, group: Group, whole: Decomposition) -> Prices | None:
        """Return what cuts of a group lose on either half of the text; None where that cannot be.

        What is trained takes too long to be trained for a half too.
        """
        trained = methods.constant(group.method, "SAMPLES") is not None
        asked = "unseen" in needs(group.method)
        if trained or not (asked or priced_apart(whole)):
            return None
        known = [self.known[site.name] for site in group.sites]
        even = [one.even for one in known if one.even is not None]
        if len(even) < len(known):
            return None
        if group.bias:  # which makes up for the mean that the fit has seen
            known = [
                centred_at(one, part.input_mean) for one, part in zip(known, even, strict=True)
            ]
            even = [one.even for one in known if one.even is not None]
        fitted = self._made(group, even)
        if asked:
            odd = [half for one in known if (half := one.odd()) is not None]
            return Prices(fitted.losses, self._made(group, even, unseen=odd).losses)
        roles = group.roles or ("",)
        maps = {role: self._matrix(site) for role, site in zip(roles, group.sites, strict=True)}
        by_role = dict(zip(roles, known, strict=True))
        return held_out_prices(fitted, maps, by_role, self.damping)

    def _factors(self, group: Group) -> list[Tensor]:
        """Return how far the loss-aware SVD of each of a group's maps is from its own price."""
        found = []
        for site in group.sites:
            known = self.known[site.name]
            if known.even is not None:
                fitted = loss_aware_svd(self._matrix(site), known.even, damping=self.damping)
                maps, both = {"": self._matrix(site)}, {"": known}
                found.append(held_out_prices(fitted, maps, both, self.damping).factors())
        return found

    def _made(
        self, group: Group, known: list[Statistics], unseen: list[Statistics] | None = None
    ) -> Decomposition:
        """Return what the group's method makes of its maps.

        unseen: moments that the losses are of, where not of those that the cuts are fitted to.
        """
        function: Callable[..., Decomposition] = methods.get(group.method)
        matrices = [self._matrix(site) for site in group.sites]
        if not group.roles:
            (matrix,), (one,) = matrices, known
            decomposition = function(matrix, one, damping=self.damping)
            if decomposition.in_nats:
                return decomposition
            losses = currency_losses(decomposition, matrix, one, self.damping)
            return replace(decomposition, losses=losses)
        biases = [bias(self._module(site)) for site in group.sites]
        offered = {
            "head_dim": group.site.head_dim,
            "biases": dict(zip(group.roles, biases, strict=True)),
            "unseen": unseen and dict(zip(group.roles, unseen, strict=True)),
        }
        return function(
            dict(zip(group.roles, matrices, strict=True)),
            dict(zip(group.roles, known, strict=True)),
            damping=self.damping,
            **{need: offered[need] for need in needs(group.method)},
        )


def _named(group: Group, pieces: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return pieces by the name of the site that they are of, and their own."""
    if not group.roles:
        return {f"{group.site.name}.{key}": piece.contiguous() for key, piece in pieces.items()}
    names = {role: site.name for role, site in zip(group.roles, group.sites, strict=True)}
    named = {}
    for key, piece in pieces.items():
        role, _, part = key.partition(".")
        named[f"{names[role]}.{part}"] = piece.contiguous()
    return named


def centred_at(statistics: Statistics, mean: Float[Tensor, " in"] | None) -> Statistics:
    """Return the statistics with A = E[(x - μ)(x - μ)ᵀ]; of inputs that are never else, zeros.

    That of the even sequences is around the same μ.
    """
    own = statistics.input_mean
    assert statistics.input_moment is not None and own is not None and mean is not None
    at, crossed = mean.double(), torch.outer(own.double(), mean.double())
    moment = statistics.input_moment.double() - crossed - crossed.T + torch.outer(at, at)
    whole = statistics.input_moment.double().diagonal().sum()
    if moment.diagonal().sum() < ROUNDING * whole:
        moment = torch.zeros_like(moment)
    even = None if statistics.even is None else centred_at(statistics.even, mean)
    return replace(statistics, input_moment=moment.float(), weighted_moment=None, even=even)
