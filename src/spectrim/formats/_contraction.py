"""The cheapest order in which to contract tokens with the cores of a tensor train.

What opt_einsum's "optimal" does, for the one network that is needed here and with one order left
out: the cores are never all multiplied with each other, since that would be the dense matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

Modes = tuple[tuple[int, int], ...]
WIDEST = 2**24  # numbers of an intermediate result; more tokens than that fit come in parts
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Order:
    """Pairwise contractions: operands [tokens, core 0, core 1, …], each result appended to them.

    steps: (left, right, equation). multiply_adds: of all steps, for all tokens together.
    widest: numbers in the largest intermediate result that grows with the tokens.
    """

    steps: tuple[tuple[int, int, str], ...]
    multiply_adds: int
    widest: int


@lru_cache(maxsize=4096)
def cheapest(modes: Modes, bonds: tuple[int, ...], tokens: int) -> Order:
    """Return the order of fewest multiply-adds for so many tokens at once.

    modes: (out, in) of every core. bonds: one more than cores, the outer two 1. Cores may be
    contracted with each other first, which many tokens pay for; but never all of them.
    """
    operands, sizes = _labels(modes, bonds, tokens)
    output = operands[0][0] + "".join(core[1] for core in operands[1:])
    whole = (1 << len(operands)) - 1
    labels = {mask: _open(mask, operands, output) for mask in range(1, whole + 1)}
    best: dict[int, tuple[int, int]] = {1 << at: (0, 0) for at in range(len(operands))}
    for mask in range(1, whole + 1):
        if mask in best or mask == whole - 1:  # the cores alone: the dense matrix
            continue
        best[mask] = min(
            (best[one][0] + best[mask ^ one][0] + _product(labels, one, mask ^ one, sizes), one)
            for one in range(1, mask)
            if one & mask == one and one in best and mask ^ one in best
        )
    made: list[int] = [1 << at for at in range(len(operands))]
    steps = tuple(_steps(whole, best, labels, made))
    grown = [math.prod(sizes[one] for one in labels[mask]) for mask in made if mask & 1]
    return Order(steps, best[whole][0], max(grown))


def _labels(modes: Modes, bonds: tuple[int, ...], tokens: int) -> tuple[list[str], dict[str, int]]:
    """Return the letters of every operand, and how long each is."""
    many = len(modes)
    outs, ins = LETTERS[1 : many + 1], LETTERS[many + 1 : 2 * many + 1]
    links = LETTERS[2 * many + 1 : 3 * many + 2]
    sizes = {LETTERS[0]: tokens, **dict(zip(links, bonds, strict=True))}
    for at, (out, inner) in enumerate(modes):
        sizes |= {outs[at]: out, ins[at]: inner}
    cores = [links[at] + outs[at] + ins[at] + links[at + 1] for at in range(many)]
    return [LETTERS[0] + ins, *cores], sizes


def _open(mask: int, operands: list[str], output: str) -> str:
    """Return the letters that are left of some operands once they are contracted."""
    inside = [one for at, one in enumerate(operands) if mask >> at & 1]
    if len(inside) == 1:
        return inside[0]
    outside = {letter for at, one in enumerate(operands) if not mask >> at & 1 for letter in one}
    wanted = outside | set(output)
    return "".join(sorted({letter for one in inside for letter in one} & wanted))


def _product(labels: dict[int, str], one: int, other: int, sizes: dict[str, int]) -> int:
    return math.prod(sizes[letter] for letter in set(labels[one]) | set(labels[other]))


def _steps(
    mask: int, best: dict[int, tuple[int, int]], labels: dict[int, str], made: list[int]
) -> list[tuple[int, int, str]]:
    """Return the contractions that lead to some operands, and note their results in ``made``."""
    if mask in made:
        return []
    one = best[mask][1]
    before = _steps(one, best, labels, made) + _steps(mask ^ one, best, labels, made)
    equation = f"{labels[one]},{labels[mask ^ one]}->{labels[mask]}"
    step = (made.index(one), made.index(mask ^ one), equation)
    made.append(mask)
    return [*before, step]


def contracted(
    x: Float[Tensor, "tokens in"], cores: list[Tensor], modes: Modes
) -> Float[Tensor, "tokens out"]:
    """Return what a train of cores [bond, out, in, bond] makes of the tokens."""
    bonds = (*(core.shape[0] for core in cores), cores[-1].shape[-1])
    tokens = max(len(x), 1)
    while (order := cheapest(modes, bonds, tokens)).widest > WIDEST and tokens > 1:
        tokens = (tokens + 1) // 2
    shape = [inner for _, inner in modes]
    return torch.cat([_run(order, part.reshape(-1, *shape), cores) for part in x.split(tokens)])


def _run(order: Order, x: Tensor, cores: list[Tensor]) -> Tensor:
    made = [x, *cores]
    for one, other, equation in order.steps:
        made.append(torch.einsum(equation, made[one], made[other]))
    return made[-1].flatten(1)
