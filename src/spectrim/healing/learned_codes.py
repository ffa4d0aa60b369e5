"""Packed matrices in training: their scales and offsets are learnt, and if asked their codes.

All are rounded forwards, scales and offsets to their own codes, and gradients are passed on as if
they were not (straight-through, 1308.3432), so that each flips once the loss has pushed it over
half of what it is rounded to. So what is trained and judged is what will be stored.
"""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float, Int8
from torch import Tensor, nn

from spectrim.formats.packed.matrix import ALL, PackedMatrix
from spectrim.formats.packed.scales import offset_code, offsets, scale_code, scales
from spectrim.formats.packed.trellis_matrix import TrellisMatrix, path_codes
from spectrim.healing.dequantized import ScaledProduct, pass_dtype

PACE = 60.0  # codes to a learning rate of one: 0.7 in 50 steps at most 5e-4
LATENT = "latent"
OF_GROUPS = ("scale", "offset")


class LearnedMatrix(PackedMatrix):
    """A packed matrix in training; scale and offset [rows, groups] stand for row scales and codes.

    latent: [rows, columns], codes before they are rounded; None where the codes stay. One that is
        pushed out of the range of its bits is put back to the end of it.
    """

    unit: None  # type: ignore[assignment]
    latent: nn.Parameter | None
    fixed: Int8[Tensor, "rows columns"] | None

    def __init__(self, held: PackedMatrix, *, codes: bool) -> None:
        super().__init__(held.rows, held.columns, held.grid)
        # in a tuple they are none of its own
        self.held = (held.unit.detach(), held.scale_code)
        scale, offset = held.scales().detach(), held.offsets()
        self.unit = None
        self.packed, self.scale_code, self.offset_code = held.packed, None, None
        self.scale = nn.Parameter(scale.clone())
        self.offset = None if offset is None else nn.Parameter(offset.detach().clone())
        signs = held.grid.bits == 1  # which have no grid to move on
        self.latent = None
        if codes and not signs:
            self.latent = nn.Parameter(held.codes().to(scale.dtype))
        fixed = held.codes() if self.latent is None else None  # unpacked once, not in every step
        self.register_buffer("fixed", fixed, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the scales."""
        return self.scale.dtype

    def scales(self, rows: slice | Tensor = ALL) -> Float[Tensor, "some groups"]:
        """Return the scales of some rows as they would be stored; they have gradients."""
        kept = self.scale[rows]
        if self.held[1] is None:
            return kept
        row_scale = self.held[0].to(kept)[rows]
        return _through(kept, scales(row_scale, scale_code(kept.detach(), row_scale)))

    def offsets(self, rows: slice | Tensor = ALL) -> Float[Tensor, "some groups"] | None:
        """Return the offsets of some rows as they would be stored, None where there are none."""
        if self.offset is None:
            return None
        kept, scale = self.offset[rows], self.scales(rows).detach()
        bits = self.grid.bits
        return _through(kept, offsets(scale, offset_code(kept.detach(), scale, bits), bits))

    def codes(self, begin: int = 0, end: int | None = None) -> Int8[Tensor, "some columns"]:
        """Return the codes of some rows as they are now, rounded."""
        if self.latent is None:
            return super().codes(begin, end)
        latent = self.latent.detach()[begin:end]
        return latent.clamp(*self.grid.codes).round().to(torch.int8)

    def dense(self, begin: int = 0, end: int | None = None) -> Float[Tensor, "some columns"]:
        """Return some rows of the matrix, its codes rounded; gradients reach ``latent``."""
        if self.latent is None:
            return super().dense(begin, end)
        with torch.no_grad():  # clamped in the graph, what is outside would never come back
            self.latent.clamp_(*self.grid.codes)
        kept = self.latent[begin:end]
        return self._dequantized(_through(kept, kept.round()), slice(begin, end))

    def product(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Return x Wᵀ; gradients reach scales and offsets, and codes that are learnt."""
        if self.latent is not None:
            return super().product(x)
        found: Tensor = ScaledProduct.apply(  # type: ignore[no-untyped-call]
            x, self.scales(), self.offsets(), self.fixed, self.grid
        )
        return found

    @torch.no_grad()
    def settled(self) -> PackedMatrix:
        """Return the packed matrix again; what was not trained is bit by bit what it was.

        Scales keep the row scale and cannot grow beyond its largest code.
        """
        made = PackedMatrix(self.rows, self.columns, self.grid).to(self.dtype)
        row_scale = self.held[0].to(self.scale)
        pieces = {"codes": self.codes(), "unit": self.scale.detach()}
        if made.scale_code is not None:
            pieces |= {"unit": row_scale, "scale_code": scale_code(self.scale, row_scale)}
        if self.offset is not None:
            pieces["offset_code"] = offset_code(self.offset, self.scales(), self.grid.bits)
        made.take(pieces)
        return made

    def _kernel(self, x: Tensor) -> None:
        """Return nothing, as the kernels multiply what is packed."""


class LearnedTrellis(TrellisMatrix):
    """Paths through a trellis in training: both scales are learnt, codes are computed once."""

    fixed: BFloat16[Tensor, "columns rows"]

    def __init__(self, held: TrellisMatrix) -> None:
        super().__init__(held.rows, held.columns, held.rate)
        self.take({name: one.detach() for name, one in held.state_dict().items()})
        found = path_codes(held.codes, held.rows, held.rate).to(torch.bfloat16)
        self.register_buffer("fixed", found, persistent=False)

    def product(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Return x Wᵀ; gradients reach both scales."""
        dtype = pass_dtype(x)
        scaled = (x * self.column_scale).to(dtype)
        return (scaled @ self.fixed.to(dtype)) * self.row_scale.to(dtype)

    @torch.no_grad()
    def settled(self) -> TrellisMatrix:
        """Return the matrix again, with its scales as they are now."""
        made = TrellisMatrix(self.rows, self.columns, self.rate).to(self.row_scale.dtype)
        made.take(self.state_dict())
        return made


def learn(block: nn.Module, *, codes: bool = False) -> nn.Module:
    """Let scales and offsets of every packed matrix in a block be trained, and return the block.

    codes: the codes of its weights too.
    """
    for name, module in list(block.named_modules()):
        if type(module) is PackedMatrix:
            made = LearnedMatrix(module, codes=codes)
            block.set_submodule(name, made.train(module.training))
        if type(module) is TrellisMatrix:
            block.set_submodule(name, LearnedTrellis(module).train(module.training))
    return block


def settle(block: nn.Module) -> nn.Module:
    """Pack what ``learn`` made trainable, and return the block."""
    for name, module in list(block.named_modules()):
        if isinstance(module, LearnedMatrix | LearnedTrellis):
            block.set_submodule(name, module.settled().train(module.training))
    return block


def _through(kept: Tensor, rounded: Tensor) -> Tensor:
    return kept + (rounded - kept).detach()
