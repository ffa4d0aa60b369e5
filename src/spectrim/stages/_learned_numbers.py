"""Packed matrices in training: steps and offsets as numbers of their own, whole numbers if asked.

A whole number is rounded forwards, and its gradient is passed on as if it were not (1308.3432), so
that it flips once the loss has pushed it over half a step. Afterwards all is packed again.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from spectrim.formats._packed import ALL, PackedMatrix
from spectrim.formats._steps import offset_code, scale_code

PACE = 60.0  # steps of the grid to a learning rate of one: 0.7 in 50 steps at most 5e-4
NAME = "latent"


class Learned(PackedMatrix):
    """A packed matrix in training; scale and offset [rows, groups] stand for unit and codes.

    latent: [rows, columns], in steps, what will be rounded; None where the numbers stay. One that
        is pushed out of the range of its bits is put back to the end of it.
    """

    unit: None  # type: ignore[assignment]
    latent: nn.Parameter | None

    def __init__(self, held: PackedMatrix, *, numbers: bool) -> None:
        super().__init__(*_shape(held))
        self.held = (held.unit.detach(),)  # in a tuple it is none of the parameters
        scale, offset = held.scales().detach(), held.offsets()
        self.unit = None
        self.packed, self.scale_code, self.offset_code = held.packed, None, None
        self.scale = nn.Parameter(scale.clone())
        self.offset = None if offset is None else nn.Parameter(offset.detach().clone())
        self.latent = nn.Parameter(held.numbers().to(scale.dtype)) if numbers else None

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the steps."""
        return self.scale.dtype

    def scales(self, rows: slice | Tensor = ALL) -> Float[Tensor, "some groups"]:
        """Return the steps of some rows."""
        return self.scale[rows]

    def offsets(self, rows: slice | Tensor = ALL) -> Float[Tensor, "some groups"] | None:
        """Return the offsets of some rows, None where there are none."""
        return None if self.offset is None else self.offset[rows]

    def dense(self, begin: int = 0, end: int | None = None) -> Float[Tensor, "some columns"]:
        """Return some rows of the matrix, its numbers rounded; gradients reach ``latent``."""
        if self.latent is None:
            return super().dense(begin, end)
        rows, half = slice(begin, end), 1 << self.bits - 1
        with torch.no_grad():  # clamped in the graph, what is outside would never come back
            self.latent.clamp_(-half, half - 1)
        kept = self.latent[rows]
        return self._written_out(kept + (kept.round() - kept).detach(), rows)

    def rounded(self) -> Int8[Tensor, "rows columns"]:
        """Return the whole numbers that there are now."""
        if self.latent is None:
            return self.numbers()
        half = 1 << self.bits - 1
        return self.latent.detach().clamp(-half, half - 1).round().to(torch.int8)

    @torch.no_grad()
    def settled(self) -> PackedMatrix:
        """Return the packed matrix again; what was not trained is bit by bit what it was.

        Steps keep the unit of their row and cannot grow beyond its largest code.
        """
        made = PackedMatrix(*_shape(self)).to(self.dtype)
        unit, scale = self.held[0].to(self.scale), self.scale.detach()
        pieces = {"numbers": self.rounded(), "unit": scale}
        if made.scale_code is not None:
            pieces |= {"unit": unit, "scale_code": scale_code(scale, unit)}
            scale = unit * pieces["scale_code"]
        if self.offset is not None:
            pieces["offset_code"] = offset_code(self.offset, scale, self.bits)
        made.take(pieces)
        return made

    def _kernel(self, x: Tensor) -> None:
        """Return nothing, as the kernels multiply what is packed."""


def learn(block: nn.Module, *, numbers: bool = False) -> nn.Module:
    """Let steps and offsets of every packed matrix in a block be trained, and return the block.

    numbers: the whole numbers too.
    """
    for name, module in list(block.named_modules()):
        if type(module) is PackedMatrix:
            made = Learned(module, numbers=numbers)
            block.set_submodule(name, made.train(module.training))
    return block


def settle(block: nn.Module) -> nn.Module:
    """Pack what ``learn`` made trainable, and return the block."""
    for name, module in list(block.named_modules()):
        if isinstance(module, Learned):
            block.set_submodule(name, module.settled().train(module.training))
    return block


def _shape(held: PackedMatrix) -> tuple[int, int, int, int, bool]:
    symmetric = held.offset is None if isinstance(held, Learned) else held.offset_code is None
    return held.rows, held.columns, held.bits, held.group, symmetric
