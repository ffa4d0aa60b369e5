"""Pivoted maps as two balanced factors while they are trained.

A pivot row moves all rows that are made of it, so steps that balanced factors tolerate ruin it. The
matrix is the same, and its pivots are chosen anew when training is over. Pivoted maps that are
packed in a few bits stay as they are.
"""

from __future__ import annotations

import torch
from torch import nn

from spectrim.formats import TwoFactors
from spectrim.formats.low_rank import LowRank
from spectrim.formats.pivoted import Pivoted


class Balanced(LowRank):
    """A pivoted map in training, as second @ first."""


def balance(block: nn.Module) -> nn.Module:
    """Put two factors in the place of every pivoted map in a block, and return the block."""
    return _as(block, Pivoted, Balanced)


def pivot(block: nn.Module) -> nn.Module:
    """Put a pivoted map in the place of every pair of factors that ``balance`` made."""
    return _as(block, Balanced, Pivoted)


@torch.no_grad()
def _as(block: nn.Module, kind: type[TwoFactors], other: type[TwoFactors]) -> nn.Module:
    """Hold what is of just this kind, without what inherits from it, in the other."""
    for name, module in list(block.named_modules()):
        if isinstance(module, kind) and type(module) is kind:
            made = other(module.in_features, module.out_features, module.rank, bias=False)
            made.fill(module.left().double(), module.right().double())
            made.bias = module.bias
            block.set_submodule(name, made.train(module.training))
    return block
