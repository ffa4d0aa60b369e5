"""Pivoted maps as two balanced factors while they are trained.

A pivot row moves all rows that are made of it, so steps that balanced factors tolerate ruin it. The
matrix is the same, and its pivots are chosen anew when training is over. Pivoted maps that are
packed in a few bits stay as they are: their whole numbers are not trained.
"""

from __future__ import annotations

import torch
from torch import nn

from spectrim.formats.low_rank import LowRank
from spectrim.formats.pivoted import Pivoted


class Balanced(LowRank):
    """A pivoted map in training, as second @ first."""


@torch.no_grad()
def balance(block: nn.Module) -> nn.Module:
    """Put two factors in the place of every pivoted map in a block, and return the block."""
    for name, module in _named(block, Pivoted):
        made = Balanced(module.in_features, module.out_features, module.rank, bias=False)
        made.fill(module.left().double(), module.right().double())
        _put(block, name, made, module)
    return block


@torch.no_grad()
def pivot(block: nn.Module) -> nn.Module:
    """Put a pivoted map in the place of every pair of factors that ``balance`` made."""
    for name, module in _named(block, Balanced):
        made = Pivoted(module.in_features, module.out_features, module.rank, bias=False)
        made.fill(module.left().double(), module.right().double())
        _put(block, name, made, module)
    return block


def _named(block: nn.Module, kind: type[nn.Module]) -> list[tuple[str, Pivoted | LowRank]]:
    """Return the maps that are of just this kind, without what inherits from it."""
    return [(name, m) for name, m in block.named_modules() if type(m) is kind]  # type: ignore[misc]


def _put(block: nn.Module, name: str, made: Pivoted | LowRank, was: Pivoted | LowRank) -> None:
    made.bias = was.bias
    block.set_submodule(name, made.train(was.training))
