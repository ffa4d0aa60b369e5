"""Packed matrices in training: steps and offsets, and whole numbers if asked, as what is learnt.

All are rounded forwards, steps and offsets to their codes, and gradients are passed on as if they
were not (straight-through, 1308.3432), so that each flips once the loss has pushed it over half of
what it is rounded to. So what is trained and judged is what will be stored.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from spectrim.formats.packed.matrix import ALL, PackedMatrix
from spectrim.formats.packed.steps import offset_code, offsets, scale_code, scales

PACE = 60.0  # steps of the grid to a learning rate of one: 0.7 in 50 steps at most 5e-4
NAME = "latent"
OF_GROUPS = ("scale", "offset")


class Learned(PackedMatrix):
    """A packed matrix in training; scale and offset [rows, groups] stand for unit and codes.

    latent: [rows, columns], in steps, what will be rounded; None where the numbers stay. One that
        is pushed out of the range of its bits is put back to the end of it.
    """

    unit: None  # type: ignore[assignment]
    latent: nn.Parameter | None

    def __init__(self, held: PackedMatrix, *, numbers: bool) -> None:
        super().__init__(*_shape(held))
        # in a tuple they are none of its own
        self.held = (held.unit.detach(), held.scale_code)
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
        """Return the steps of some rows as they would be stored; they have gradients."""
        kept = self.scale[rows]
        if self.held[1] is None:
            return kept
        unit = self.held[0].to(kept)[rows]
        return _through(kept, scales(unit, scale_code(kept.detach(), unit)))

    def offsets(self, rows: slice | Tensor = ALL) -> Float[Tensor, "some groups"] | None:
        """Return the offsets of some rows as they would be stored, None where there are none."""
        if self.offset is None:
            return None
        kept, scale = self.offset[rows], self.scales(rows).detach()
        return _through(
            kept, offsets(scale, offset_code(kept.detach(), scale, self.bits), self.bits)
        )

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
        unit = self.held[0].to(self.scale)
        pieces = {"numbers": self.rounded(), "unit": self.scale.detach()}
        if made.scale_code is not None:
            pieces |= {"unit": unit, "scale_code": scale_code(self.scale, unit)}
        if self.offset is not None:
            pieces["offset_code"] = offset_code(self.offset, self.scales(), self.bits)
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


def _through(kept: Tensor, rounded: Tensor) -> Tensor:
    return kept + (rounded - kept).detach()


def _shape(held: PackedMatrix) -> tuple[int, int, int, int, bool]:
    symmetric = held.offset is None if isinstance(held, Learned) else held.offset_code is None
    return held.rows, held.columns, held.bits, held.group, symmetric
