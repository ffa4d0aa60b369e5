"""Where the codes of a number lie in the blocks of llama.cpp's types, and what they stand for.

Types whose numbers each have a code of their own: value = scale x level[code] + offset, scale and
offset the same for some neighbours. The scales stay as ggml chose them; only codes are written.
The layouts are those of ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.rounding.ggml import dequantize

Kind = GGMLQuantizationType
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_J = np.arange(256)


@dataclass(frozen=True)
class _Part:
    """Some bits of the codes of a block: of code j, ``bits`` at ``shift[j]`` of ``byte[j]``."""

    byte: np.ndarray
    shift: np.ndarray
    bits: int


@dataclass(frozen=True)
class Layout:
    """The codes of a type's block: their parts, the lowest bits first, and what they stand for."""

    parts: tuple[_Part, ...]
    levels: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return how many numbers a block has."""
        return len(self.parts[0].byte)


def _halves(at: int, size: int, total: int = 0) -> _Part:
    """Return nibbles of which each byte holds one of both halves of ``size`` numbers."""
    j = _J[: total or size]
    return _Part(at + j // size * (size // 2) + j % (size // 2), j % size // (size // 2) * 4, 4)


def _bit(at: int, of: int) -> _Part:
    """Return single bits, one of every ``of``-th number in each byte, or in a row (of = 1)."""
    if of == 1:
        return _Part(at + _J[:32] // 8, _J[:32] % 8, 1)
    return _Part(at + _J % of, _J // of, 1)


def _pairs(at: int) -> _Part:
    """Return two bits each, 128 numbers in 32 bytes."""
    return _Part(at + _J // 128 * 32 + _J % 32, _J % 128 // 32 * 2, 2)


_SIX = _Part(_J // 128 * 64 + _J % 64, _J % 128 // 64 * 4, 4)

LAYOUTS = {
    Kind.Q4_0: Layout((_halves(2, 32),), tuple(range(-8, 8))),
    Kind.Q4_1: Layout((_halves(4, 32),), tuple(range(16))),
    Kind.Q5_0: Layout((_halves(6, 32), _bit(2, 1)), tuple(range(-16, 16))),
    Kind.Q5_1: Layout((_halves(8, 32), _bit(4, 1)), tuple(range(32))),
    Kind.IQ4_NL: Layout((_halves(2, 32),), _NONLINEAR),
    Kind.MXFP4: Layout((_halves(1, 32),), _FP4),
    Kind.IQ4_XS: Layout((_halves(8, 32, 256),), _NONLINEAR),
    Kind.Q2_K: Layout((_pairs(16),), tuple(range(4))),
    Kind.Q3_K: Layout((_pairs(32), _bit(0, 32)), tuple(range(-4, 4))),
    Kind.Q4_K: Layout((_halves(16, 64, 256),), tuple(range(16))),
    Kind.Q5_K: Layout((_halves(48, 64, 256), _bit(16, 32)), tuple(range(32))),
    Kind.Q6_K: Layout((_SIX, _pairs(128)), tuple(range(-32, 32))),
}


def read_codes(block: np.ndarray, layout: Layout) -> Int[Tensor, "rows size"]:
    """Return the codes in blocks; block: uint8 [rows, bytes of a block]."""
    codes, low = np.zeros((len(block), layout.size), np.uint8), 0
    for part in layout.parts:
        shift = part.shift.astype(np.uint8)
        codes |= ((block[:, part.byte] >> shift) & np.uint8(2**part.bits - 1)) << low
        low += part.bits
    return torch.from_numpy(codes.astype(np.int64))


def with_codes(block: np.ndarray, layout: Layout, codes: Int[Tensor, "rows size"]) -> np.ndarray:
    """Return blocks with other codes and the scales that they have; one row of codes: for all."""
    made, low = block, 0
    given = codes.numpy().astype(np.uint8)
    for part in layout.parts:
        mask = np.uint8(2**part.bits - 1)
        shift = part.shift.astype(np.uint8)
        clear = np.zeros(block.shape[1], np.uint8)
        put = np.zeros((len(given), block.shape[1]), np.uint8)
        np.bitwise_or.at(clear, part.byte, mask << shift)
        for one in np.unique(shift):  # of one shift no byte comes twice
            here = np.flatnonzero(shift == one)
            put[:, part.byte[here]] |= (given[:, here] >> low & mask) << one
        made = (made & ~clear) | put
        low += part.bits
    return made


def scales(
    block: np.ndarray, kind: GGMLQuantizationType
) -> tuple[Float[Tensor, "rows size"], Float[Tensor, "rows size"]]:
    """Return scale and offset of every number in blocks, float32."""
    layout = LAYOUTS[kind]
    shape = (1, layout.size)
    first, last = (
        dequantize(with_codes(block, layout, torch.full(shape, code)), kind)
        for code in (0, len(layout.levels) // 2 - 1)
    )
    levels = layout.levels
    scale = (last - first) / (levels[len(levels) // 2 - 1] - levels[0])
    return scale, first - levels[0] * scale
