"""llama.cpp's types with codes that lose less: what is left of a row makes up for each error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.rounding.ggml import dequantize, quantize
from spectrim.rounding.ggml_codes import LAYOUTS, Layout, read_codes, scales, with_codes

PASSES = 2  # of the descent over all columns; more gain less than a hundredth
AT_ONCE = 128  # columns after which changes reach the rest
ROWS = 8192  # quantised at a time: tables of large vocabularies have many


def quantize_with_feedback(
    matrix: Float[Tensor, "rows columns"],
    root: Float[Tensor, "columns columns"],
    kind: GGMLQuantizationType,
    inputs: Float[Tensor, "columns columns"] | None = None,
) -> np.ndarray:
    """Return a matrix in a type's blocks, uint8 [rows, row_bytes].

    ggml chooses the scales of a block once the errors of the blocks before it have reached it;
    inside a block each column's error reaches the next ones, as in GPTQ (2210.17323), where every
    number has a code of its own. Blocks of codebooks are left as ggml makes them.
    root: U, upper triangular, with Uᵀ U the inverse of the damped second moment of the inputs.
    inputs: that moment itself, damped; where it is given, codes are chosen again one by one with
        all others in view, which takes some times as long and loses a tenth to a quarter less.
    """
    parts = []
    for rows in matrix.float().split(ROWS):
        packed = _blocks(rows, root, kind)
        if inputs is not None and kind in LAYOUTS:
            packed = _descended(packed, rows, kind, inputs.float())
        parts.append(packed)
    return np.concatenate(parts)


def _blocks(
    matrix: Float[Tensor, "rows columns"],
    root: Float[Tensor, "columns columns"],
    kind: GGMLQuantizationType,
) -> np.ndarray:
    size = GGML_QUANT_SIZES[kind][0]
    left = matrix.T.contiguous()  # [columns, rows]
    packed = []
    for begin in range(0, len(left), size):
        end = begin + size
        own = root[begin:end, begin:end]
        make = _by_column if kind in LAYOUTS else _whole
        block, errors = make(left[begin:end], own, kind)
        packed.append(block)
        left[end:] -= root[begin:end, end:].T @ errors
    return np.concatenate(packed, axis=1)


def _by_column(
    left: Float[Tensor, "size rows"], own: Float[Tensor, "size size"], kind: GGMLQuantizationType
) -> tuple[np.ndarray, Float[Tensor, "size rows"]]:
    """Return a block, and errors that the columns behind it are to make up for, in units of U."""
    block = quantize(left.T, kind, own.diagonal().square().reciprocal())
    nearest = _Nearest.of(block, kind, len(left))
    codes = torch.zeros(left.shape, dtype=torch.long)
    errors, left = torch.zeros_like(left), left.clone()
    for at in range(len(left)):
        codes[at], value = nearest(left[at], at)
        errors[at] = (left[at] - value) / own[at, at]
        left[at + 1 :] -= torch.outer(own[at, at + 1 :], errors[at])
    return with_codes(block, LAYOUTS[kind], codes.T.contiguous()), errors


def _whole(
    left: Float[Tensor, "size rows"], own: Float[Tensor, "size size"], kind: GGMLQuantizationType
) -> tuple[np.ndarray, Float[Tensor, "size rows"]]:
    inverse = torch.cholesky_inverse(own, upper=True)  # of UᵀU
    block = quantize(left.T, kind, inverse.diagonal())
    error = left - dequantize(block, kind).T
    return block, torch.linalg.solve_triangular(own.T, error, upper=False)


@dataclass(frozen=True)
class _Nearest:
    """The codes whose values are nearest, with the scales that blocks have."""

    scale: Float[Tensor, "columns rows"]
    offset: Float[Tensor, "columns rows"]
    levels: Float[Tensor, " codes"]

    @classmethod
    def of(cls, blocks: np.ndarray, kind: GGMLQuantizationType, columns: int) -> _Nearest:
        """Return those of a matrix with so many columns; blocks: uint8 [blocks, bytes of each]."""
        scale, offset = (one.reshape(-1, columns).T.contiguous() for one in scales(blocks, kind))
        return cls(scale, offset, torch.tensor(LAYOUTS[kind].levels, dtype=torch.float32))

    @cached_property
    def _ordered(self) -> tuple[Tensor, Tensor]:
        """Return what lies halfway between neighbouring levels, and the code of each level."""
        ordered, places = self.levels.sort()
        return (ordered[1:] + ordered[:-1]) / 2, places

    @cached_property
    def _steps(self) -> Tensor:
        return torch.where(self.scale == 0, torch.inf, self.scale)

    def __call__(
        self, wanted: Float[Tensor, " rows"], at: int
    ) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Return codes and values of a column."""
        edges, places = self._ordered
        codes = places[torch.bucketize((wanted - self.offset[at]) / self._steps[at], edges)]
        return codes, self.values(codes, slice(at, at + 1))[0]

    def values(self, codes: Int[Tensor, "*some rows"], at: slice) -> Float[Tensor, "some rows"]:
        """Return what codes of some columns stand for."""
        return self.levels[codes].view(-1, codes.shape[-1]) * self.scale[at] + self.offset[at]


def _descended(
    packed: np.ndarray,
    matrix: Float[Tensor, "rows columns"],
    kind: GGMLQuantizationType,
    inputs: Float[Tensor, "columns columns"],
) -> np.ndarray:
    """Return blocks with codes chosen again one by one: coordinate descent, scales as they are."""
    layout, (size, width) = LAYOUTS[kind], GGML_QUANT_SIZES[kind]
    rows, columns = matrix.shape
    blocks = packed.reshape(-1, width)
    nearest = _Nearest.of(blocks, kind, columns)
    codes = read_codes(blocks, layout).reshape(rows, columns).T.contiguous()
    values = nearest.values(codes, slice(None))
    slope = inputs @ (values - matrix.T)  # half the gradient, [columns, rows]
    for _ in range(PASSES):
        _pass(inputs, slope, nearest, codes, values)
    return _packed(blocks, layout, codes, size).reshape(rows, -1)


def _pass(
    inputs: Float[Tensor, "columns columns"],
    slope: Float[Tensor, "columns rows"],
    nearest: _Nearest,
    codes: Int[Tensor, "columns rows"],
    values: Float[Tensor, "columns rows"],
) -> None:
    """Choose all codes again, column by column, in place; slope: half the gradient, kept right."""
    columns = len(inputs)
    for begin in range(0, columns, AT_ONCE):
        some = slice(begin, min(begin + AT_ONCE, columns))
        changes = _columns(some, inputs[some, some], slope[some], nearest, codes, values)
        slope += inputs[:, some] @ changes


def _columns(
    some: slice,
    inputs: Float[Tensor, "some some"],
    slope: Float[Tensor, "some rows"],
    nearest: _Nearest,
    codes: Int[Tensor, "columns rows"],
    values: Float[Tensor, "columns rows"],
) -> Float[Tensor, "some rows"]:
    """Choose the codes of some columns again, in place; return by how much the values changed."""
    slope, changes = slope.clone(), torch.zeros_like(slope)
    for at in range(len(slope)):
        column = some.start + at
        wanted = values[column] - slope[at] / inputs[at, at]
        codes[column], value = nearest(wanted, column)
        changes[at] = value - values[column]
        values[column] = value
        slope[at + 1 :] += torch.outer(inputs[at, at + 1 :], changes[at])
    return changes


def _packed(
    blocks: np.ndarray, layout: Layout, codes: Int[Tensor, "columns rows"], size: int
) -> np.ndarray:
    return with_codes(blocks, layout, codes.T.reshape(-1, size).contiguous())
