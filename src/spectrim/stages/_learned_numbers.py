"""Packed matrices while they are trained together with their whole numbers (straight-through).

A number is rounded forwards, and its gradient is passed on as if it were not (1308.3432), so that
it flips once the loss has pushed it over half a step. Steps and offsets are trained beside it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from spectrim.formats._packed import PackedMatrix

PACE = 60.0  # steps of the grid to a learning rate of one: 0.7 in 50 steps at most 5e-4
NAME = "latent"


class LearnedNumbers(PackedMatrix):
    """A packed matrix in training; ``latent`` [rows, columns], in steps, is what will be rounded.

    A latent number that is pushed out of the range of its bits is put back to the end of it.
    """

    def __init__(self, held: PackedMatrix) -> None:
        symmetric = held.offset is None
        super().__init__(held.rows, held.columns, held.bits, held.group, symmetric)
        self.packed, self.scale, self.offset = held.packed, held.scale, held.offset
        self.latent = nn.Parameter(held.numbers().float())

    def dense(self, begin: int = 0, end: int | None = None) -> Float[Tensor, "some columns"]:
        """Return some rows of the matrix as it would be packed; gradients reach ``latent``."""
        rows, half = slice(begin, end), 1 << self.bits - 1
        with torch.no_grad():  # clamped in the graph, what is outside would never come back
            self.latent.clamp_(-half, half - 1)
        kept = self.latent[rows]
        return self._written_out(kept + (kept.round() - kept).detach(), rows)

    def rounded(self) -> Int8[Tensor, "rows columns"]:
        """Return the whole numbers that there are now."""
        half = 1 << self.bits - 1
        return self.latent.detach().clamp(-half, half - 1).round().to(torch.int8)

    def _kernel(self, x: Tensor) -> None:
        """Return nothing, as the kernels multiply what is packed."""


def learn(block: nn.Module) -> nn.Module:
    """Let the whole numbers of every packed matrix in a block be trained, and return the block."""
    for name, module in list(block.named_modules()):
        if type(module) is PackedMatrix:
            block.set_submodule(name, LearnedNumbers(module).train(module.training))
    return block


def settle(block: nn.Module) -> nn.Module:
    """Pack what ``learn`` made trainable, and return the block."""
    for name, module in list(block.named_modules()):
        if isinstance(module, LearnedNumbers):
            shape = module.rows, module.columns, module.bits, module.group, module.offset is None
            made = PackedMatrix(*shape).to(module.scale.dtype)
            made.take(module.rounded(), module.scale, module.offset)
            block.set_submodule(name, made.train(module.training))
    return block
