"""llama.cpp's types with codes that lose less: what is left of a row makes up for each error."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.rounding.ggml import dequantize, quantize
from spectrim.rounding.ggml_codes import LAYOUTS, Layout, read_codes, scales, with_codes

PASSES = 3  # of the descent; more gain less than a hundredth
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
            packed = _descended(packed, rows, inputs.float(), kind)
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
    nearest = _Nearest(block, kind)
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


class _Nearest:
    """The codes whose values are nearest, with the scales that blocks have."""

    def __init__(self, blocks: np.ndarray, kind: GGMLQuantizationType, columns: int = 0) -> None:
        layout = LAYOUTS[kind]
        wide = columns or layout.size
        self.scale, self.offset = (
            one.reshape(-1, wide).T.contiguous() for one in scales(blocks, kind)
        )
        self.steps = torch.where(self.scale == 0, torch.inf, self.scale)
        self.levels = torch.tensor(layout.levels, dtype=torch.float32)
        ordered, self.places = self.levels.sort()
        self.edges = (ordered[1:] + ordered[:-1]) / 2

    def __call__(
        self, wanted: Float[Tensor, " rows"], at: int
    ) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Return codes and values of a column."""
        inner = (wanted - self.offset[at]) / self.steps[at]
        codes = self.places[torch.bucketize(inner, self.edges)]
        return codes, self.values(codes, slice(at, at + 1))[0]

    def values(self, codes: Int[Tensor, "*some rows"], at: slice) -> Float[Tensor, "some rows"]:
        """Return what codes of some columns stand for."""
        return self.levels[codes].view(-1, codes.shape[-1]) * self.scale[at] + self.offset[at]


def _descended(
    packed: np.ndarray,
    matrix: Float[Tensor, "rows columns"],
    inputs: Float[Tensor, "columns columns"],
    kind: GGMLQuantizationType,
) -> np.ndarray:
    """Return blocks with codes that no single change makes better: coordinate descent on E A Eᵀ."""
    layout, (size, width) = LAYOUTS[kind], GGML_QUANT_SIZES[kind]
    rows, columns = matrix.shape
    blocks = packed.reshape(-1, width)
    nearest = _Nearest(blocks, kind, columns)
    codes = read_codes(blocks, layout).reshape(rows, columns).T.contiguous()
    values = nearest.values(codes, slice(None))
    slope = inputs @ (values - matrix.T)  # half the gradient, [columns, rows]
    for _ in range(PASSES):
        for begin in range(0, columns, AT_ONCE):
            some = slice(begin, min(begin + AT_ONCE, columns))
            changes = _pass(some, inputs[some, some], slope[some], nearest, codes, values)
            slope += inputs[:, some] @ changes
    return _packed(blocks, layout, codes, size).reshape(rows, -1)


def _pass(
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
