"""llama.cpp's own code for its types of few bits, from the library that `libggml-python` brings."""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float
from torch import Tensor

from spectrim.errors import SpectrimError

TYPES = tuple(
    GGMLQuantizationType[name]
    for name in (
        "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS",
        "MXFP4", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0",
    )
)  # fmt: skip
"""Those that a map may get, by size. llama.cpp runs MXFP4 since August 2025, the others longer."""
ROWS = 64  # that a thread quantises at a time, at least
_FILES = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}


def fits(kind: GGMLQuantizationType, columns: int) -> bool:
    """Return whether rows of so many columns can be stored in a type, which has whole blocks."""
    return columns % GGML_QUANT_SIZES[kind][0] == 0


def row_bytes(kind: GGMLQuantizationType, columns: int) -> int:
    """Return how many bytes a row takes in a type."""
    block, size = GGML_QUANT_SIZES[kind]
    return columns // block * size


def bits(kind: GGMLQuantizationType) -> float:
    """Return how many bits a number takes in a type, scales and offsets included."""
    block, size = GGML_QUANT_SIZES[kind]
    return 8 * size / block


def quantize(
    matrix: Float[Tensor, "rows columns"],
    kind: GGMLQuantizationType,
    importance: Float[Tensor, " columns"] | None = None,
) -> np.ndarray:
    """Return a matrix in a type's blocks, uint8 [rows, row_bytes], as llama.cpp quantises it.

    importance: what an importance matrix holds, the mean square of every input; None weighs all
        inputs alike.

    Raises:
        SpectrimError: `libggml-python` is not there.
        ValueError: the type has no whole number of blocks a row.
    """
    library = loaded()
    rows, columns = matrix.shape
    if not fits(kind, columns):
        raise ValueError(f"{kind.name} cannot hold rows of {columns}")
    values = np.ascontiguousarray(matrix.detach().float().numpy())
    weights = torch.ones(columns) if importance is None else importance.detach()
    # a type may divide by the sum of a block's weights; inputs that are never used leave it at 0
    least = float(weights.mean()) * 1e-6 or 1.0
    weigh = np.ascontiguousarray(weights.float().clamp_min(least).numpy())
    packed = np.zeros((rows, row_bytes(kind, columns)), np.uint8)

    def part(begin: int) -> int:
        some = min(step, rows - begin)
        place = (int(kind), values.ctypes.data, packed.ctypes.data, begin * columns, some, columns)
        return int(library.ggml_quantize_chunk(*place, weigh.ctypes.data))

    threads = torch.get_num_threads()
    step = max(-(-rows // (4 * threads)), ROWS)
    begins = range(0, rows, step)
    if len(begins) == 1 or threads == 1:
        written = sum(map(part, begins))
    else:
        with ThreadPoolExecutor(threads) as pool:
            written = sum(pool.map(part, begins))
    assert written == packed.nbytes
    return packed


def dequantize(packed: np.ndarray, kind: GGMLQuantizationType) -> Float[Tensor, "rows columns"]:
    """Return the numbers that blocks stand for, float32; packed: uint8 [rows, row_bytes].

    kind: one of TYPES.

    Raises:
        SpectrimError: `libggml-python` is not there.
    """
    packed = np.ascontiguousarray(packed)
    block, size = GGML_QUANT_SIZES[kind]
    values = torch.empty(len(packed), packed.shape[1] // size * block)
    read = loaded()[f"dequantize_row_{kind.name.lower().replace('_k', '_K')}"]
    read.restype, read.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    read(packed.ctypes.data, values.data_ptr(), values.numel())
    return values


@cache
def loaded() -> ctypes.CDLL:
    """Return ggml's library.

    Raises:
        SpectrimError: `libggml-python` is not there.
    """
    found = find_spec("libggml")
    name = _FILES.get(sys.platform, "")
    folder = Path(str(found.origin)).parent if found and found.origin else None
    files = sorted(folder.rglob(name)) if folder and name else []
    if not files:
        raise SpectrimError(
            "llama.cpp's quantiser is not installed; run pip install 'spectrim[export]'"
        )
    library = ctypes.CDLL(str(files[0]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library
