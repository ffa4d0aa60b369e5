"""Packed matrices in the layout of ONNX Runtime's MatMulNBits, with whole zero points.

MatMulNBits multiplies by scale (code - zero point), and is fast only where the zero point is a
whole number of the codes' own bits. Our offsets are real numbers. Taking the nearest whole zero
point leaves up to half a step of every weight of a group, which is as much again as rounding did.
What is left, d, is the same for a whole group, so it adds d Σ x over the group's inputs:

    W x = Σ_g scale_g Σ_j (code_j - zero_g) x_j + Σ_g d_g Σ_j x_j

The sums of x over its groups are therefore appended to x, and the d to the codes: inputs like any
other, in the same product. Each sum is appended `COPIES` times, the second in units 2^bits - 1 times
finer, so that d is exact to 1/50 of a step at 2 bits and to 1/400 at 4. Where every offset is a
whole number of steps, and where a grid is symmetric, nothing is appended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spectrim.formats.packed.matrix import PackedMatrix, pack

STORED = {2: 2, 3: 4, 4: 4, 8: 8}  # bits of ours → of theirs
COPIES = {2: 3, 4: 2, 8: 1}
SIZES = (16, 32, 64, 128, 256)
LONGEST = 128  # a block of a row that is one group; longer ones are no faster
ROOM = 1.01  # so that the finest unit, rounded to its dtype, still reaches the largest d


@dataclass(frozen=True)
class Layout:
    """How a packed matrix is laid out: equal layouts can stand one below the other."""

    bits: int
    size: int
    """Neighbours along the input that share a scale and a zero point."""
    inputs: int
    zeros: bool
    """Whether there are zero points; without, they are 2^(bits-1)."""
    sums: bool
    """Whether sums of the inputs over their blocks are appended."""

    @property
    def blocks(self) -> int:
        """Return how many blocks the inputs fill."""
        return -(-self.inputs // self.size)

    @property
    def appended(self) -> int:
        """Return how many sums are appended."""
        return self.blocks * COPIES[self.bits] * self.sums

    @property
    def columns(self) -> int:
        """Return how many inputs the product has; the sums begin at a block's beginning."""
        return self.blocks * self.size + self.appended if self.sums else self.inputs

    @property
    def all_blocks(self) -> int:
        """Return how many blocks there are, those of sums included."""
        return -(-self.columns // self.size)


@dataclass(frozen=True)
class Blocks:
    """What a product reads. scales are in the dtype of the checkpoint."""

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
    scale = _spread(matrix.scales().detach(), of.blocks)
    filled = zero.repeat_interleave(of.size, 1)  # what lies behind the inputs counts as zero
    filled[:, : of.inputs] = matrix.codes().to(filled.dtype) + middle
    if of.sums:
        unit, codes = _rest_codes(rest, of, scale.dtype)
        filled = torch.cat((filled, codes), 1)
        ends = of.all_blocks - of.blocks
        scale = torch.cat((scale, unit.expand(-1, ends)), 1)
        zero = torch.cat((zero, torch.full_like(zero[:, :1], middle).expand(-1, ends)), 1)
    full = torch.nn.functional.pad(filled, (0, of.all_blocks * of.size - filled.shape[1]), value=0)
    packed = _packed(full, bits).reshape(matrix.rows, of.all_blocks, -1)
    return Blocks(packed, scale.contiguous(), _packed(zero, bits) if of.zeros else None)


def finer(bits: int) -> Float[Tensor, " copies"]:
    """Return the units that the copies of a sum are in, by which each reaches half of the last.

    Codes of 4 bits go up to 7, so that a unit of 1/15 reaches (7 + 1/2) / 15 = 1/2.
    """
    return torch.tensor([(2.0**bits - 1) ** -at for at in range(COPIES[bits])])


def _zeros(matrix: PackedMatrix, bits: int) -> tuple[Tensor, Tensor]:
    """Return whole zero points [rows, groups], and what they leave of the offsets, float32.

    What rounding an offset to its dtype has moved it by is left alone.
    """
    middle, scale = 1 << bits - 1, matrix.scales().detach().float()
    offset, code = matrix.offsets(), matrix.offset_code
    if offset is None or code is None:
        return torch.full(scale.shape, middle), torch.zeros_like(scale)
    steps = code.float() * 2**matrix.grid.bits / 128  # offset / scale, exactly
    zero = (middle - steps).round().clamp(0, (1 << bits) - 1)
    whole = zero == middle - steps
    rest = torch.where(whole, 0.0, offset.detach().float() - scale * (middle - zero))
    return zero.to(torch.int64), rest


def _rest_codes(rest: Tensor, of: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return one unit a row, and the codes of what the zero points leave, copy beside copy."""
    middle = 1 << of.bits - 1
    unit = (rest.abs().amax(1, keepdim=True) * (ROOM / (middle - 0.5))).to(dtype)
    codes = []
    for finest in finer(of.bits):
        step = torch.where(unit > 0, unit.float() * finest, 1.0)
        code = (rest / step).round().clamp(-middle, middle - 1)
        codes.append(code.to(torch.int64) + middle)
        rest = rest - code * step
    return unit, torch.stack(codes, -1).flatten(1)


def _spread(each: Tensor, blocks: int) -> Tensor:
    """Return what belongs to groups for every block; a row that is one group has it many times."""
    return each.expand(-1, blocks).clone() if each.shape[1] == 1 else each


def _packed(codes: Tensor, bits: int) -> Tensor:
    return pack(codes.to(torch.uint8).view(torch.int8), bits)
