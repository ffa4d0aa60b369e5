"""Tensor trains of matrices: how dimensions are factored, and TT-SVD, rounding and multiplying out.

A core is [bond, out, in, bond] (a matrix product operator); W[o₁o₂o₃, i₁i₂i₃] is the product of
its cores over the bonds, o and i counted row-major. Oseledets (2011), algorithms 1 and 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spectrim.formats._contraction import Modes

Cores = list[Float[Tensor, "_ _ _ _"]]  # [bond, out, in, bond]

# Two, which is a sum of χ Kronecker products, lose a little less at equal numbers (0.622 against
# 0.624 of ‖W‖² on an MLP map of the demo model at a quarter), but take three times the work for
# many tokens and far wider intermediate results; three and five lose more.
CORES = 4
UNEVEN = 3  # how many times the smallest factor the largest may be; beyond, the number is padded


@lru_cache(maxsize=1024)
def modes(out_features: int, in_features: int) -> Modes:
    """Return (out, in) of every core: even factors, paired so that all pairs are alike in size.

    Of pairings that are equally so, the one that stores least at full bonds.
    """
    outs, ins = _even_factors(out_features), _even_factors(in_features)
    pairings = [
        tuple(zip(one, other, strict=True))
        for one in sorted(set(itertools.permutations(outs)))
        for other in sorted(set(itertools.permutations(ins)))
    ]
    return min(pairings, key=_imbalance)


def _imbalance(pairs: Modes) -> tuple[float, int]:
    sizes = [out * inner for out, inner in pairs]
    return max(sizes) / min(sizes), stored(pairs, max(sizes) ** len(sizes))


def _even_factors(number: int) -> tuple[int, ...]:
    """Return the most even factors of the next number from this one on that has even ones.

    A prime has none, nor has 11008 = 4 · 8 · 8 · 43: it is padded to 11016 = 8 · 9 · 9 · 17.
    """
    for padded in itertools.count(number):
        found = min(_factorings(padded, CORES), key=lambda factors: factors[-1] / factors[0])
        if found[-1] <= UNEVEN * found[0]:
            return found
    raise AssertionError("powers of two are even")


def _factorings(number: int, many: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Yield the factorings of a number into so many factors, rising, none below ``least``."""
    if many == 1:
        yield (number,)
        return
    for factor in range(least, int(number ** (1 / many) + 1e-9) + 1):
        if number % factor == 0:
            for others in _factorings(number // factor, many - 1, factor):
                yield (factor, *others)


def bonds(pairs: Modes, rank: int) -> tuple[int, ...]:
    """Return all bond dimensions, the outer 1 included: ``rank``, or less where less is exact."""
    sizes = [out * inner for out, inner in pairs]
    between = range(1, len(sizes))
    inside = (min(rank, math.prod(sizes[:at]), math.prod(sizes[at:])) for at in between)
    return (1, *inside, 1)


@lru_cache(maxsize=65536)
def stored(pairs: Modes, rank: int) -> int:
    """Return how many numbers the cores hold together."""
    links = bonds(pairs, rank)
    sizes = zip(links, pairs, links[1:], strict=False)
    return sum(before * out * inner * behind for before, (out, inner), behind in sizes)


@lru_cache(maxsize=1024)
def largest(out_features: int, in_features: int) -> int:
    """Return the largest bond dimension that stores less than the matrix; 1 where none does."""
    pairs = modes(out_features, in_features)
    ranks = range(max(bonds(pairs, out_features * in_features)), 1, -1)
    smaller = (rank for rank in ranks if stored(pairs, rank) < out_features * in_features)
    return next(smaller, 1)


def decomposed(matrix: Float[Tensor, "out in"], pairs: Modes, rank: int) -> Cores:
    """Return the train of TT-SVD, left-orthogonal, of a matrix that is padded with zeros to fit."""
    links = bonds(pairs, rank)
    rest = interleaved(padded(matrix, pairs), pairs).reshape(1, -1)
    cores = []
    for at, (out, inner) in enumerate(pairs[:-1]):
        unfolded = rest.reshape(links[at] * out * inner, -1)
        basis, values, others = torch.linalg.svd(unfolded, full_matrices=False)
        cores.append(basis[:, : links[at + 1]].reshape(links[at], out, inner, -1))
        rest = values[: links[at + 1], None] * others[: links[at + 1]]
    return [*cores, rest.reshape(links[-2], *pairs[-1], 1)]


def rounded(cores: Cores, rank: int) -> Cores:
    """Return the train cut to a smaller bond dimension: TT-rounding, left-orthogonal."""
    made = list(cores)
    for at in range(len(made) - 1, 0, -1):  # right-orthogonal, so that each cut is the best one
        basis, triangle = torch.linalg.qr(made[at].flatten(1).T)
        made[at] = basis.T.reshape(-1, *made[at].shape[1:])
        made[at - 1] = made[at - 1] @ triangle.T
    links = bonds(tuple((core.shape[1], core.shape[2]) for core in cores), rank)
    for at, kept in enumerate(links[1:-1]):
        shape = made[at].shape
        basis, values, others = torch.linalg.svd(made[at].flatten(0, 2), full_matrices=False)
        made[at] = basis[:, :kept].reshape(*shape[:3], -1)
        carried = values[:kept, None] * others[:kept]
        made[at + 1] = torch.tensordot(carried, made[at + 1], dims=1)
    return made


def multiplied(cores: Cores, shape: tuple[int, int]) -> Float[Tensor, "out in"]:
    """Return the matrix of a train, what was padded cut off. shape: (out, in)."""
    product = cores[0]
    for core in cores[1:]:
        product = torch.tensordot(product, core, dims=1)
    pairs = tuple((core.shape[1], core.shape[2]) for core in cores)
    return as_matrix(product, pairs)[: shape[0], : shape[1]]


def padded(matrix: Float[Tensor, "out in"], pairs: Modes) -> Float[Tensor, "padout padin"]:
    """Return the matrix with rows and columns of zeros behind, to the shape of its cores."""
    out, inner = (math.prod(sizes) for sizes in zip(*pairs, strict=True))
    return functional.pad(matrix, (0, inner - matrix.shape[1], 0, out - matrix.shape[0]))


def interleaved(matrix: Float[Tensor, "out in"], pairs: Modes) -> Tensor:
    """Return a matrix as the tensor [o₁, i₁, o₂, i₂, …]."""
    outs, ins = zip(*pairs, strict=True)
    many = len(pairs)
    order = [place for at in range(many) for place in (at, many + at)]
    return matrix.reshape(*outs, *ins).permute(order)


def as_matrix(tensor: Tensor, pairs: Modes) -> Float[Tensor, "out in"]:
    """Return the matrix of the tensor [o₁, i₁, o₂, i₂, …], in whichever shape it comes."""
    outs, ins = zip(*pairs, strict=True)
    many = len(pairs)
    order = [2 * at for at in range(many)] + [2 * at + 1 for at in range(many)]
    whole = tensor.reshape([size for pair in pairs for size in pair]).permute(order)
    return whole.reshape(math.prod(outs), math.prod(ins))
