"""Codes of ours as llama.cpp's block types, without a second rounding; and plain numbers.

Blocks hold 32 neighbours of a row. Of a block's codes q and its scale d, and of its minimum m where
it has one, both float16:

    Q8_0  w = d q, -128 <= q < 128      Q4_0  w = d (q - 8)      Q4_1  w = d q + m, 0 <= q < 16

Our codes c of w = scale c + offset are those up to a shift, c = q - 8, so only the scales are
rounded, to float16. Codes of two or three bits are some of those of four. Layouts:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid

BLOCK = 32
SHIFT = 8  # from codes of four bits and less to those that count from 0


@dataclass(frozen=True)
class Codes:
    """A packed matrix with a scale, and an offset or none, for every block of 32."""

    codes: Int8[Tensor, "rows columns"]
    scale: Float[Tensor, "rows blocks"]
    offset: Float[Tensor, "rows blocks"] | None


def kind_of(grid: Grid, columns: int) -> Kind | None:
    """Return the type that holds codes of this grid as they are, None where there is none."""
    if columns % BLOCK or grid.group % BLOCK:
        return None
    if grid.bits == 8:
        return Kind.Q8_0 if grid.symmetric else None
    return Kind.Q4_0 if grid.symmetric else Kind.Q4_1


@torch.no_grad()
def codes_of(parts: Sequence[PackedMatrix], order: Tensor | None, shape: tuple[int, int]) -> Codes:
    """Return packed matrices that lie below each other as one, its rows in another order.

    order: which row comes where; None as they are.
    shape: of the result, filled up with blocks of zeros.
    """
    found = [_by_block(part) for part in parts]
    codes = torch.cat([one.codes for one in found])
    scale = torch.cat([one.scale for one in found])
    offset = torch.cat([one.offset for one in found if one.offset is not None] or [scale])
    if order is not None:
        codes, scale, offset = codes[order], scale[order], offset[order]
    below, blocks = shape[0] - len(codes), shape[1] // BLOCK
    codes = functional.pad(codes, (0, shape[1] - codes.shape[1], 0, below))
    scale, offset = (
        functional.pad(one, (0, blocks - one.shape[1], 0, below)) for one in (scale, offset)
    )
    return Codes(codes, scale, None if found[0].offset is None else offset)


def _by_block(part: PackedMatrix) -> Codes:
    blocks = -(-part.columns // BLOCK)
    repeats = part.grid.group // BLOCK if part.grid.group else blocks

    def each(one: Tensor) -> Tensor:
        return one.float().repeat_interleave(repeats, dim=1)[:, :blocks]

    offset = part.offsets()
    return Codes(part.codes(), each(part.scales()), None if offset is None else each(offset))


def blocks(held: Codes, kind: Kind) -> np.ndarray:
    """Return the bytes of a matrix in one of the three types, [rows, bytes of a row]."""
    rows = len(held.codes)
    q = held.codes.view(rows, -1, BLOCK)
    parts = [_half(held.scale)]
    if kind is Kind.Q8_0:
        parts.append(q.numpy().view(np.uint8))
    else:
        if held.offset is not None:
            parts.append(_half(held.offset - SHIFT * held.scale))
        above = (q + SHIFT).to(torch.uint8).numpy()
        parts.append(above[..., : BLOCK // 2] | above[..., BLOCK // 2 :] << 4)
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def moved(held: Codes, kind: Kind) -> float:
    """Return by how much rounding scales to float16 moves a weight at most, of the largest."""
    scale, largest = held.scale, SHIFT if kind is not Kind.Q8_0 else 128
    error = (scale.half().float() - scale).abs() * largest
    size = scale * largest
    if held.offset is not None:
        low = held.offset - SHIFT * scale
        error = error * 2 + (low.half().float() - low).abs()
        size = size + held.offset.abs()
    return float(error.max() / size.max().clamp_min(1e-30))


def _half(values: Tensor) -> np.ndarray:
    """Return float16 numbers as bytes, [rows, blocks, 2]."""
    numbers: np.ndarray = values.half().unsqueeze(-1).contiguous().numpy().view(np.uint8)
    return numbers
