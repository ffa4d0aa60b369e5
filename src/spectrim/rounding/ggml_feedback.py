"""llama.cpp's types with codes that lose less: what is left of a row makes up for each error."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float
from torch import Tensor

from spectrim.rounding.column_choice import LevelGrid, choose
from spectrim.rounding.ggml import dequantize, quantize
from spectrim.rounding.ggml_codes import LAYOUTS, read_codes, scales, with_codes

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
        all others in view, which loses a tenth to a quarter less.
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
    diagonal = own.diagonal()[:, None]
    # an error of the weights is minus the change of their values
    chosen = choose(left, None, -own / diagonal, grid_of(block, kind, len(left)))
    made = with_codes(block, LAYOUTS[kind], chosen.codes.T.contiguous())
    return made, -chosen.changes / diagonal


def _whole(
    left: Float[Tensor, "size rows"], own: Float[Tensor, "size size"], kind: GGMLQuantizationType
) -> tuple[np.ndarray, Float[Tensor, "size rows"]]:
    inverse = torch.cholesky_inverse(own, upper=True)  # of UᵀU
    block = quantize(left.T, kind, inverse.diagonal())
    error = left - dequantize(block, kind).T
    return block, torch.linalg.solve_triangular(own.T, error, upper=False)


def grid_of(blocks: np.ndarray, kind: GGMLQuantizationType, columns: int) -> LevelGrid:
    """Return the values that codes can stand for in a matrix with so many columns.

    blocks: uint8 [blocks, bytes of each], with their scales.
    """
    scale, offset = (one.reshape(-1, columns).T.contiguous() for one in scales(blocks, kind))
    return LevelGrid(scale, offset, torch.tensor(LAYOUTS[kind].levels, dtype=torch.float32))


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
    grid = grid_of(blocks, kind, columns)
    codes = read_codes(blocks, layout).reshape(rows, columns).T.contiguous()
    values = grid.values(codes)
    slope = inputs @ (values - matrix.T)  # half the gradient, [columns, rows]
    diagonal = inputs.diagonal()
    for _ in range(PASSES):
        for begin in range(0, columns, AT_ONCE):
            some = slice(begin, min(begin + AT_ONCE, columns))
            steps = diagonal[some]
            wanted = values[some] - slope[some] / steps[:, None]
            chosen = choose(wanted, values[some], inputs[some, some] / steps, grid.part(some))
            codes[some], values[some] = chosen.codes, chosen.values
            slope += inputs[:, some] @ chosen.changes
    return with_codes(blocks, layout, codes.T.reshape(-1, size).contiguous()).reshape(rows, -1)
