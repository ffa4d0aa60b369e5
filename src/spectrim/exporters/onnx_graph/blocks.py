"""Packed matrices in the layout of ONNX Runtime's MatMulNBits, with whole zero points.

MatMulNBits multiplies by scale (code - zero point), and is fast only where the zero point is a
whole number of the codes' own bits. Our offsets are real numbers. Taking the nearest whole zero
point leaves up to half a step of every weight of a group, which is as much again as rounding did.
What is left, d, is the same for a whole group, so it adds d Σ x over the group's inputs:

    W x = Σ_g scale_g Σ_j (code_j - zero_g) x_j + Σ_g d_g Σ_j x_j

The means of x over its groups are therefore appended to x, and the d to the codes: inputs like any
other, in the same product. Each mean is appended `COPIES` times, so that d is exact to 1/50 of a
step at 2 bits and to 1/60 at 4: at 4 bits both copies are in the same units, which takes no node of
its own; at 2 bits each is three times finer than the last. Where every offset is a whole number of
steps, and where a grid is symmetric, nothing is appended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spectrim.formats.packed.matrix import PackedMatrix, pack
from spectrim.formats.packed.scales import scales

STORED = {1: 2, 2: 2, 3: 4, 4: 4, 8: 8}  # bits of ours → of theirs
COPIES = {2: (1.0, 1 / 3, 1 / 9), 4: (1.0, 1.0), 8: (1.0,)}
"""Bits → the units of each copy of a mean, relative to the first.

Codes of 2 bits go up to 1, so that a unit of 1/3 reaches (1 + 1/2) / 3, half of the last unit."""
REACH = {2: 1.5, 4: 14.5, 8: 127.5}
"""Bits → how many of the first unit all copies reach together."""
SIZES = (16, 32, 64, 128, 256)
LONGEST = 128  # a block of a row that is one group; longer ones are no faster
ROOM = 1.01  # so that units, rounded to their dtype, still reach the largest d


@dataclass(frozen=True)
class Layout:
    """How a packed matrix is laid out: equal layouts can stand one below the other."""

    bits: int
    size: int
    """Neighbours along the input that share a scale and a zero point."""
    inputs: int
    zeros: bool
    """Whether there are zero points; without, they are 2^(bits-1)."""
    means: bool
    """Whether means of the inputs over their blocks are appended."""

    @property
    def blocks(self) -> int:
        """Return how many blocks the inputs fill."""
        return -(-self.inputs // self.size)

    @property
    def appended(self) -> int:
        """Return how many means are appended."""
        return self.blocks * len(COPIES[self.bits]) * self.means

    @property
    def columns(self) -> int:
        """Return how many inputs the product has; the means begin at a block's beginning."""
        return self.blocks * self.size + self.appended if self.means else self.inputs

    @property
    def all_blocks(self) -> int:
        """Return how many blocks there are, those of means included."""
        return -(-self.columns // self.size)


@dataclass(frozen=True)
class Blocks:
    """What a product reads. scales are float32; one for a row is in the checkpoint's dtype."""

    codes: UInt8[Tensor, "rows blocks bytes"]
    scales: Float[Tensor, "rows blocks"]
    zeros: UInt8[Tensor, "rows packed"] | None


def layout(matrix: PackedMatrix) -> Layout | None:
    """Return how a matrix will be laid out, None where its groups are of a length that none has."""
    bits, group = STORED[matrix.grid.bits], matrix.grid.group
    fitting = [size for size in SIZES if size <= LONGEST and matrix.columns % size == 0]
    size = group or max(fitting, default=SIZES[0])
    if size not in SIZES:
        return None
    zero, rest = _zeros(matrix, bits)
    symmetric = bool((zero == 1 << bits - 1).all())
    return Layout(bits, size, matrix.columns, not symmetric, bool(rest.any()))


def laid_out(matrix: PackedMatrix, of: Layout) -> Blocks:
    """Return codes, scales and zero points of a matrix in its layout."""
    bits, middle = of.bits, 1 << of.bits - 1
    zero, rest = (_spread(one, of.blocks) for one in _zeros(matrix, bits))
    scale = _spread(_scales(matrix), of.blocks)
    filled = zero.repeat_interleave(of.size, 1)  # what lies behind the inputs counts as zero
    filled[:, : of.inputs] = matrix.codes().to(filled.dtype) + middle
    if of.means:
        unit, codes = _rest_codes(rest, of, scale.dtype)
        filled = torch.cat((filled, codes), 1)
        ends = of.all_blocks - of.blocks
        scale = torch.cat((scale, unit.expand(-1, ends)), 1)
        zero = torch.cat((zero, torch.full_like(zero[:, :1], middle).expand(-1, ends)), 1)
    full = torch.nn.functional.pad(filled, (0, of.all_blocks * of.size - filled.shape[1]), value=0)
    packed = _packed(full, bits).reshape(matrix.rows, of.all_blocks, -1)
    return Blocks(packed, scale.contiguous(), _packed(zero, bits) if of.zeros else None)


def _scales(matrix: PackedMatrix) -> Tensor:
    """Return scales [rows, groups] as their codes say, which the checkpoint's dtype would round."""
    if matrix.scale_code is None:
        return matrix.unit.detach()
    return scales(matrix.unit.detach().float(), matrix.scale_code)


def _zeros(matrix: PackedMatrix, bits: int) -> tuple[Tensor, Tensor]:
    """Return whole zero points [rows, groups], and what they leave of the offsets, float32."""
    middle, scale, code = 1 << bits - 1, _scales(matrix).float(), matrix.offset_code
    if code is None:
        return torch.full(scale.shape, middle), torch.zeros_like(scale)
    steps = code.float() * 2**matrix.grid.bits / 128  # offset / scale, exactly
    zero = (middle - steps).round().clamp(0, (1 << bits) - 1)
    return zero.to(torch.int64), scale * (steps - (middle - zero))


def _rest_codes(rest: Tensor, of: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return one unit a row, and the codes of what the zero points leave, copy behind copy.

    The inputs are means, not sums, so that what they are multiplied by is ``size`` times as large.
    """
    middle, rest = 1 << of.bits - 1, rest * of.size
    unit = (rest.abs().amax(1, keepdim=True) * (ROOM / REACH[of.bits])).to(dtype)
    codes = []
    for finer in COPIES[of.bits]:
        step = torch.where(unit > 0, unit.float() * finer, 1.0)
        code = (rest / step).round().clamp(-middle, middle - 1)
        codes.append(code.to(torch.int64) + middle)
        rest = rest - code * step
    return unit, torch.cat(codes, 1)


def _spread(each: Tensor, blocks: int) -> Tensor:
    """Return what belongs to groups for every block; a row that is one group has it many times."""
    return each.expand(-1, blocks).clone() if each.shape[1] == 1 else each


def _packed(codes: Tensor, bits: int) -> Tensor:
    return pack(codes.to(torch.uint8).view(torch.int8), bits)
