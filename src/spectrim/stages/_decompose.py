"""What the methods make of every site, kept in the cache: one folder a method, one file a block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spectrim.architectures import Stack
from spectrim.currency import currency_losses
from spectrim.job import Job, key_of
from spectrim.methods import Damping, Decomposition, methods
from spectrim.options import Factorize
from spectrim.run import atomic_file, locked
from spectrim.sites import Site, bias, weight
from spectrim.stages._samples import sampled
from spectrim.statistics import Statistics, load_block, without_tokens

ROUNDING = 1e-6  # part of a float32 moment that is no more than rounding
CURVE = ("ranks", "losses", "values")  # of a decomposition; everything else in a file is pieces


@dataclass(frozen=True)
class Offer:
    """The curve that one method offers for one site, or for sites that it takes together."""

    method: str
    sites: tuple[Site, ...]
    ranks: Tensor
    losses: Tensor
    values: Tensor | None


def decompositions(job: Job, options: Factorize, method: str) -> Path:
    """Return the folder of the cache that holds what a method makes of the model."""
    key = key_of(
        "decompositions", 5, job.statistics_key, method,
        options.damp_input, options.damp_gradient, centred(options, method),
    )  # fmt: skip
    return job.cache / "decompositions" / key


def centred(options: Factorize, method: str) -> bool:
    """Return whether a method sees centred inputs, and biases make up for their mean."""
    own: bool | None = methods.constant(method, "CENTRED")
    return options.centre if own is None else own


def decompose(job: Job, options: Factorize) -> None:
    """Write the decomposition of every site to the cache, block by block, where it is missing."""
    statistics = job.statistics()
    blocks = job.each_block()
    for number, method in enumerate(options.methods):
        folder = decompositions(job, options, method)
        inputs = _samples(job, method, folder)
        for done, (stack, index) in enumerate(blocks, start=1):
            target = job.block_file(folder, stack, index)
            sampled_here = next(inputs)
            with locked(target):
                if not target.exists():
                    known = load_block(statistics, stack, index)
                    if sampled_here is not None:
                        known = {name: replace(one, samples=sampled_here.get(name))
                                 for name, one in known.items()}  # fmt: skip
                    tensors = _decompose_block(job, options, method, (stack, index), known)
                    with atomic_file(target) as partial:
                        save_file(tensors, partial)
            total = len(options.methods) * len(blocks)
            job.progress(number * len(blocks) + done, total, "decomposing")


def _samples(job: Job, method: str, folder: Path) -> Iterator[dict[str, Tensor] | None]:
    """Return the inputs of every block in turn; None where the method or the cache needs none."""
    wanted: int | None = methods.constant(method, "SAMPLES")
    done = all(job.block_file(folder, *place).exists() for place in job.each_block())
    return repeat(None) if wanted is None or done else sampled(job, wanted)


def offers(job: Job, options: Factorize) -> list[Offer]:
    """Return every curve that the methods offer, in the order of the sites.

    Copied, as a view would keep the whole file of a block in the address space.
    """
    found: list[Offer] = []
    for stack, index in job.each_block():
        for method in options.methods:
            file = job.block_file(decompositions(job, options, method), stack, index)
            with safe_open(file, framework="pt") as held:
                keys = set(held.keys())
                for sites in together(method, reached(job, stack, index)):
                    name = sites[0].name
                    if f"{name}.losses" in keys:
                        ranks, losses = (held.get_tensor(f"{name}.{p}").clone() for p in CURVE[:2])
                        known = f"{name}.values" in keys
                        values = held.get_tensor(f"{name}.values").clone() if known else None
                        found.append(Offer(method, sites, ranks, losses, values))
    return found


def pieces_of(file: Path, site: str) -> dict[str, Tensor]:
    """Return the pieces of one site in a file of decompositions; none where it was left out."""
    with safe_open(file, framework="pt") as held:
        names = [key for key in held.keys() if key.startswith(f"{site}.")]  # noqa: SIM118
        return {
            key.removeprefix(f"{site}."): held.get_tensor(key)
            for key in names
            if key.removeprefix(f"{site}.") not in CURVE
        }


def together(method: str, sites: list[Site]) -> list[tuple[Site, ...]]:
    """Return the sites of a block as a method takes them: one by one, or by its ROLES."""
    groups = _groups(method)
    if not groups:
        return [(site,) for site in sites]
    if "head_dim" in _needs(method):
        sites = [site for site in sites if site.head_dim]
    played: dict[tuple[str, str], Site] = {}  # by prefix and role
    for site in sites:
        if (role := _played(groups, site)) is not None:
            played[site.role.removesuffix(role), role] = site
    found = []
    for prefix in dict.fromkeys(prefix for prefix, _ in played):
        here = {role: site for (at, role), site in played.items() if at == prefix}
        for roles in groups:
            fitting = [_fitting(role, here) for role in _names(roles)]
            if all(fits or role.endswith("?") for role, fits in zip(roles, fitting, strict=True)):
                found.append(tuple(site for fits in fitting for site in fits))
    return found


def is_open(method: str) -> bool:
    """Return whether a method takes together however many sites fit a role."""
    return any("*" in role for roles in _groups(method) for role in roles)


def reached(job: Job, stack: Stack, index: int) -> list[Site]:
    """Return the sites of a block that tokens came to; an expert without keeps its weights."""
    left = without_tokens(job.statistics(), stack, index)
    return [site for site in job.block_sites(stack, index) if site.name not in left]


def _decompose_block(
    job: Job,
    options: Factorize,
    method: str,
    place: tuple[Stack, int],
    known: dict[str, Statistics],
) -> dict[str, Tensor]:
    block = job.dense_block(*place)
    prefix = f"{place[0].path}.{place[1]}."
    tensors: dict[str, Tensor] = {}
    for sites in together(method, reached(job, *place)):
        statistics = {site.name: known[site.name] for site in sites}
        if methods.constant(method, "SAMPLES") and any(
            one.samples is None for one in statistics.values()
        ):
            continue
        if centred(options, method):
            statistics = {name: _centred(one) for name, one in statistics.items()}
        parts = {site.name: block.get_submodule(site.name.removeprefix(prefix)) for site in sites}
        decomposition = _decomposed(method, sites, parts, statistics, _damping(options))
        for part in CURVE:
            if (tensor := getattr(decomposition, part)) is not None:
                tensors[f"{sites[0].name}.{part}"] = tensor.contiguous()
        tensors |= _named(method, sites, decomposition.pieces)
    return tensors


def _decomposed(
    method: str,
    sites: tuple[Site, ...],
    parts: dict[str, nn.Module],
    statistics: dict[str, Statistics],
    damping: Damping,
) -> Decomposition:
    function: Callable[..., Decomposition] = methods.get(method)
    maps = {name: weight(part).detach().float() for name, part in parts.items()}
    if methods.constant(method, "ROLES") is None:
        (matrix,), (known,) = maps.values(), statistics.values()
        found = function(matrix, known, damping=damping)
        if found.in_nats:
            return found
        return replace(found, losses=currency_losses(found, matrix, known, damping))
    roles = {site.name: role_in(method, site) for site in sites}
    known_needs = {
        "head_dim": sites[0].head_dim,
        "biases": {roles[name]: bias(part) for name, part in parts.items()},
    }
    return function(
        {roles[name]: matrix for name, matrix in maps.items()},
        {roles[name]: known for name, known in statistics.items()},
        damping=damping,
        **{need: known_needs[need] for need in _needs(method)},
    )


def role_in(method: str, site: Site) -> str:
    """Return which of a method's ROLES a site plays, its prefix left out."""
    role = _played(_groups(method), site)
    assert role is not None
    return role


def _groups(method: str) -> list[tuple[str, ...]]:
    """Return the groups of roles that a method takes together; none where it takes single maps."""
    wanted = methods.constant(method, "ROLES") or ()
    return list(wanted) if wanted and isinstance(wanted[0], tuple) else [wanted] * bool(wanted)


def _needs(method: str) -> tuple[str, ...]:
    """Return what a method is called with beside maps and statistics."""
    return methods.constant(method, "NEEDS") or ()


def _names(roles: tuple[str, ...]) -> list[str]:
    return [role.rstrip("?") for role in roles]


def _played(groups: list[tuple[str, ...]], site: Site) -> str | None:
    """Return the longest role that a site's ends with, behind "encoder_", "expert3_" or nothing.

    Where that has a "*", what stands in its place is part of what is returned.
    """
    known = sorted((role for roles in groups for role in _names(roles)), key=len, reverse=True)
    for role in known:
        if found := re.fullmatch(rf"(?:.+_)?({_pattern(role)})", site.role):
            return found[1]
    return None


def _fitting(role: str, sites: dict[str, Site]) -> list[Site]:
    return [site for known, site in sites.items() if re.fullmatch(_pattern(role), known)]


def _pattern(role: str) -> str:
    return role.replace("*", r"\d+")


def _named(method: str, sites: tuple[Site, ...], pieces: dict[str, Any]) -> dict[str, Tensor]:
    if methods.constant(method, "ROLES") is None:
        return {f"{sites[0].name}.{key}": piece.contiguous() for key, piece in pieces.items()}
    names = {role_in(method, site): site.name for site in sites}
    found = {}
    for key, piece in pieces.items():
        role, _, part = key.partition(".")
        found[f"{names[role]}.{part}"] = piece.contiguous()
    return found


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
    return replace(statistics, input_moment=moment.float())
