"""What the methods make of every site, kept in the cache: one folder a method, one file a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spectrim.cutting.currency import currency_losses
from spectrim.cutting.groups import centred, groups, needs
from spectrim.cutting.held_out import held_out_losses, priced_apart
from spectrim.cutting.samples import sampled
from spectrim.files import atomic_file, key_of, locked
from spectrim.job.job import Job
from spectrim.methods import Decomposition, methods
from spectrim.model.architectures import Place
from spectrim.model.sites import Site, bias, weight
from spectrim.plan import Group
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
        "decompositions", 6, job.statistics_key, method,
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
                    known = block_statistics(statistics, place)
                    if sampled_here is not None:
                        known = {name: replace(one, samples=sampled_here.get(name))
                                 for name, one in known.items()}  # fmt: skip
                    tensors = _decompose_block(job, options, method, place, known)
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


def _decompose_block(
    job: Job,
    options: Factorize,
    method: str,
    place: Place,
    known: dict[str, Statistics],
) -> dict[str, Tensor]:
    block = job.dense_block(place)
    prefix = place.prefix
    tensors: dict[str, Tensor] = {}
    for group in groups(method, reached(job, place), options):
        statistics = {site.name: known[site.name] for site in group.sites}
        if methods.constant(method, "SAMPLES") and any(
            one.samples is None for one in statistics.values()
        ):
            continue
        if group.bias:
            statistics = {name: _centred(one) for name, one in statistics.items()}
        modules = [block.get_submodule(one.name.removeprefix(prefix)) for one in group.sites]
        decomposition = _priced(group, modules, statistics, _damping(options))
        for part in CURVE:
            if (tensor := getattr(decomposition, part)) is not None:
                tensors[f"{group.site.name}.{part}"] = tensor.contiguous()
        tensors |= _named(group, decomposition.pieces)
    return tensors


def _priced(
    group: Group, modules: list[nn.Module], statistics: dict[str, Statistics], damping: Damping
) -> Decomposition:
    """Return what the group's method makes of its maps, priced on text that it was not fitted to.

    Where that cannot be, as where maps share what is stored, the price is that of the fit.
    """
    decomposition = _decomposed(group, modules, statistics, damping)
    halves = {name: one.even for name, one in statistics.items() if one.even is not None}
    trained = methods.constant(group.method, "SAMPLES") is not None  # which takes long
    if trained or len(halves) < len(statistics) or not priced_apart(decomposition):
        return decomposition
    fitted = _decomposed(group, modules, halves, damping)
    at = group.roles.index("down") if group.roles else 0
    matrix = weight(modules[at]).detach().float()
    losses = held_out_losses(fitted, matrix, statistics[group.sites[at].name], damping)
    return replace(decomposition, losses=losses)


def _decomposed(
    group: Group, modules: list[nn.Module], statistics: dict[str, Statistics], damping: Damping
) -> Decomposition:
    """Return what the group's method makes of its maps; statistics: by name of the site."""
    function: Callable[..., Decomposition] = methods.get(group.method)
    matrices = [weight(module).detach().float() for module in modules]
    seen = [statistics[site.name] for site in group.sites]
    if not group.roles:
        (matrix,), (one,) = matrices, seen
        decomposition = function(matrix, one, damping=damping)
        if decomposition.in_nats:
            return decomposition
        losses = currency_losses(decomposition, matrix, one, damping)
        return replace(decomposition, losses=losses)
    offered = {
        "head_dim": group.site.head_dim,
        "biases": dict(zip(group.roles, map(bias, modules), strict=True)),
    }
    return function(
        dict(zip(group.roles, matrices, strict=True)),
        dict(zip(group.roles, seen, strict=True)),
        damping=damping,
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


def _damping(options: Factorize) -> Damping:
    return Damping(options.damp_input, options.damp_gradient)


def _centred(statistics: Statistics) -> Statistics:
    """Return the statistics with A = E[(x - μ)(x - μ)ᵀ]; of inputs that never vary, zeros."""
    assert statistics.input_moment is not None and statistics.input_mean is not None
    mean = statistics.input_mean.double()
    moment = statistics.input_moment.double() - torch.outer(mean, mean)
    whole = statistics.input_moment.double().diagonal().sum()
    if moment.diagonal().sum() < ROUNDING * whole:
        moment = torch.zeros_like(moment)
    return replace(statistics, input_moment=moment.float(), weighted_moment=None, even=None)
