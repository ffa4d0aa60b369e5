"""Codes, scales and offsets: what a weight in few bits stands for, and how scales are stored.

A group of 32 neighbours in 4 bits shares one scale and one offset:

    W_ij ≈ scale_ig code_ij + offset_ig,    -2^(bits-1) <= code_ij < 2^(bits-1)

``offset`` is real-valued and in the units of W, as the minimum of llama.cpp's Q4_1 is; the zero
point of the textbooks, the code that stands for 0, is -offset / scale, and no whole number.

Scales and offsets are quantised once more, to codes of eight bits:

    scale_ig  = row_scale_i scale_code_ig / 255,         0 <= scale_code_ig < 256
    offset_ig = scale_ig offset_code_ig 2^bits / 128,    -128 <= offset_code_ig < 128

The second-level scale is one for each row. That is the double quantisation of QLoRA (2305.14314,
section 3), whose second level is one for 256 scales, and of llama.cpp's k-quants, whose one is for
a super-block of 256 weights. A group costs 16 bits where two numbers of the checkpoint cost 32.
Where a row is one group its scale is the row scale itself.

Both are rounded to the dtype of the row scale, that of the checkpoint, so that kernels which take
them in this dtype multiply by what the codes were made for. An offset reaches once the range of a
group to either side, in 1/128 of it. The tensor of row scales is called ``unit`` in checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = 255
REACH = 128


@dataclass(frozen=True)
class Grid:
    """Which values a matrix may have, up to scales and offsets. 4 bits in groups of 32: (4, 32)."""

    bits: int
    """Bits of a code: 1, 2, 3, 4 or 8; those of one bit are signs, -1 and 1."""
    group: int
    """Neighbours along the input that share a scale; 0 for a whole row."""
    symmetric: bool
    """Whether there are scales only, no offsets."""
    trellis: int = 0
    """Bits that 16 numbers of a column take as part of a path (trellis_matrix.py); 0: codes of
    their own. ``bits`` is 0 where it is not."""

    @property
    def lowest(self) -> int:
        """Return the smallest code, -2^(bits-1)."""
        return -(1 << self.bits - 1)

    @property
    def codes(self) -> tuple[int, int]:
        """Return the smallest and the largest code, -2^(bits-1) and 2^(bits-1) - 1; of signs, 1."""
        return self.lowest, max(-self.lowest - 1, 1)

    def groups(self, columns: int) -> int:
        """Return how many groups a row of so many columns has; the last may be a short one."""
        return -(-columns // self.group) if self.group else 1


def quantize(values: Tensor, scale: Tensor, offset: Tensor, codes: tuple[int, int]) -> Tensor:
    """Return the codes that come nearest to values, as floats; scale 0 has only zeros.

    scale, offset: of a shape that broadcasts to that of ``values``.
    codes: the smallest and the largest that there are.
    """
    nearest = ((values - offset) / torch.where(scale > 0, scale, 1.0)).round()
    return nearest.clamp(*codes)


def dequantize(codes: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return scale codes + offset, the values that codes stand for, in the dtype of the scales.

    codes: of the dtype of the scales. scale, offset: of a shape that broadcasts to theirs.
    """
    values = codes * scale
    return values if offset is None else values + offset


def scales(row_scale: Float[Tensor, "rows 1"], code: Tensor | None) -> Float[Tensor, "rows groups"]:
    """Return scales in the dtype of the row scales, which they are themselves without codes.

    code: [rows, groups], uint8 or whole floats.
    """
    if code is None:
        return row_scale
    found: Tensor = (_wide(row_scale) * (code / LARGEST)).to(row_scale.dtype)
    return found


def offsets(
    scale: Float[Tensor, "rows groups"], code: Tensor, bits: int
) -> Float[Tensor, "rows groups"]:
    """Return offsets in the dtype of the scales. code: [rows, groups], int8 or whole floats."""
    found: Tensor = (_wide(scale) * (code * (2**bits / REACH))).to(scale.dtype)
    return found


def scale_code(scale: Tensor, row_scale: Tensor) -> Tensor:
    """Return the codes, as floats, of what comes nearest to scales; row scale 0 has only zeros."""
    parts = scale / torch.where(row_scale > 0, row_scale, 1.0) * LARGEST
    found: Tensor = parts.round().clamp(0, LARGEST)
    return found


def offset_code(offset: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the codes, as floats, of what comes nearest to offsets."""
    parts = offset / torch.where(scale > 0, scale, 1.0) * (REACH / 2**bits)
    found: Tensor = parts.round().clamp(-REACH, REACH - 1)
    return found


def least_scale(middle: Tensor, bits: int) -> Tensor:
    """Return the scales that offsets need to reach the middles of ranges so far from zero."""
    found: Tensor = middle.abs() / 2**bits
    return found


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
