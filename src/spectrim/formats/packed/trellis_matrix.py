"""A matrix whose columns are paths through a trellis, at any rate of sixteenths of a bit a number.

W_ij ≈ row_scale_i column_scale_j code_ij, where the code of row i of column j is computed from a
window of STATE_BITS bits of the column (bitshift trellis of QTIP, 2406.11235). Windows of
neighbouring rows overlap in all but the few bits by which the second begins later, so that a number
takes those few bits, and yet is one of 4096. At two bits of Gaussian numbers the squared error is
0.071 of the variance, where codes of their own leave 0.118 and no code leaves less than 0.0625.

Layout of ``codes`` [columns, bytes]: the window of row i begins at bit ⌊i rate / 16⌋; bit k is bit
k mod 8 of byte ⌊k / 8⌋. With s the window, and 4096 added in odd rows, the four bytes of
s x MULTIPLIER + ADDEND mod 2^32 are added, less 510: about Gaussian ("1MAD" of QTIP).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spectrim.kernels.library import checked, library
from spectrim.kernels.maps import Kept, Parts, made
from spectrim.kernels.structures import Matrix, TrellisCodes, readable

STATE_BITS = 12
UNIT = 16  # rows after which the bits of a column begin alike again
MULTIPLIER, ADDEND = 1860382173, 3365302260  # the best of 60 that were drawn
MIDDLE = 510
SPREAD = 147.8  # standard deviation of a sum of four bytes; of all 4096 codes it is 149.9
LEAST, MOST = 8, 80  # rates: half a bit to five bits a number
FEW = 12  # tokens up to which products with paths are faster than with their codes
AT_ONCE = 1 << 22  # codes that are computed at a time


def column_bytes(rows: int, rate: int) -> int:
    """Return the bytes that a column takes, the last window included."""
    return -(-((rows - 1) * rate // UNIT + STATE_BITS) // 8)


def path_codes(
    codes: UInt8[Tensor, "some bytes"], rows: int, rate: int
) -> Float[Tensor, "some rows"]:
    """Return what columns stand for without their scales, whole numbers in float32."""
    row = torch.arange(rows, device=codes.device)
    begin = row * rate // UNIT
    full = functional.pad(codes, (0, 2)).to(torch.int64)
    at = begin >> 3
    words = full[:, at] | full[:, at + 1] << 8 | full[:, at + 2] << 16
    state = (words >> (begin & 7) & (1 << STATE_BITS) - 1) | (row & 1) << STATE_BITS
    mixed = state * MULTIPLIER + ADDEND
    total = sum((mixed >> 8 * part & 255 for part in range(4)), torch.zeros_like(mixed))
    return (total - MIDDLE).float()


class TrellisMatrix(nn.Module):
    """W [rows, columns] as paths, a row scale and a column scale.

    row_scale: [rows], column_scale: [columns]; parameters in the checkpoint's dtype.
    rate: bits of 16 rows of a column.
    """

    codes: UInt8[Tensor, "columns bytes"]

    def __init__(self, rows: int, columns: int, rate: int) -> None:
        super().__init__()
        self.rows, self.columns, self.rate = rows, columns, rate
        empty = torch.empty(columns, column_bytes(rows, rate), dtype=torch.uint8)
        self.register_buffer("codes", empty)
        self.row_scale = nn.Parameter(torch.empty(rows))
        self.column_scale = nn.Parameter(torch.empty(columns))
        self.native = False
        self._kept = Kept()

    @staticmethod
    def stored_bytes(shape: tuple[int, int], rate: int, dtype: torch.dtype) -> int:
        """Return the bytes on disk of a matrix of this shape, (rows, columns)."""
        rows, columns = shape
        return columns * column_bytes(rows, rate) + (rows + columns) * dtype.itemsize

    @torch.no_grad()
    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take ``codes``, ``row_scale`` and ``column_scale``."""
        for name in ("codes", "row_scale", "column_scale"):
            getattr(self, name).copy_(pieces[name])

    def part(self) -> TrellisCodes:
        """Return what the kernels multiply with."""
        return TrellisCodes(self.codes, self.row_scale, self.rate)

    def dense(self) -> Float[Tensor, "rows columns"]:
        """Return the matrix in the dtype of the scales, from float32; it has its gradients."""
        return self.whole().to(self.row_scale.dtype)

    def whole(self) -> Float[Tensor, "rows columns"]:
        """Return the matrix in float32; it has its gradients."""
        found = path_codes(self.codes, self.rows, self.rate).T
        return found * self.row_scale.float()[:, None] * self.column_scale.float()

    def product(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Return x Wᵀ, codes times scaled inputs, scaled again."""
        flat = x.reshape(-1, self.columns)
        if self._native(flat):
            y = self._few(flat) if len(flat) <= FEW else self._by_columns(flat)
        elif torch.is_grad_enabled():
            y = checkpoint(self._by_columns, flat, use_reentrant=False, preserve_rng_state=False)
        else:
            y = self._by_columns(flat)
        return y.reshape(*x.shape[:-1], self.rows)

    def extra_repr(self) -> str:
        """Return shape and rate for ``print(model)``."""
        return f"{self.rows} x {self.columns}, {self.rate / UNIT:g} bits"

    def _native(self, x: Tensor) -> bool:
        """Return whether the kernels may multiply: the model was opened to be used."""
        used = self.native and len(x) > 0 and not torch.is_grad_enabled()
        if not used or x.dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return False
        return library() is not None and readable([*self.part().tensors(), self.column_scale])

    @torch.no_grad()
    def _few(self, x: Tensor) -> Tensor:
        found = library()
        assert found is not None
        x = x.contiguous()
        y = x.new_empty(len(x), self.rows)
        pointer = self._pointer()
        threads = torch.get_num_threads()
        checked(found.product(pointer, x.data_ptr(), y.data_ptr(), len(x), threads))
        return y

    def _pointer(self) -> object:
        parts = Parts(self.part(), input_scale=self.column_scale)
        tensors = [*self.part().tensors(), self.column_scale]
        found: object = self._kept.pointer(
            tensors, lambda: made(parts, None, (self.rows, self.columns))
        )
        return found

    def _by_columns(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, some columns at a time."""
        scaled, row_scale = x * self.column_scale.to(x.dtype), self.row_scale.to(x.dtype)
        step = max(1, AT_ONCE // self.rows)
        early = x.dtype == torch.float16  # in which sums of mere codes overflow
        total: Tensor | None = None
        for begin in range(0, self.columns, step):
            some = slice(begin, begin + step)
            codes = self._codes(some, x.dtype)
            part = scaled[:, some] @ (codes * row_scale if early else codes)
            total = part if total is None else total + part
        assert total is not None
        return total if early else total * row_scale

    def _codes(self, some: slice, dtype: torch.dtype) -> Float[Tensor, "some rows"]:
        """Return codes of some columns, by the kernels where they are there."""
        found, codes = library(), self.codes[some]
        fits = codes.device.type == "cpu" and dtype == torch.bfloat16
        if found is None or not fits or torch.compiler.is_compiling():
            return path_codes(codes, self.rows, self.rate).to(dtype)
        matrix: Matrix = TrellisCodes(self.codes, self.row_scale, self.rate).structure()
        read = found.dense_columns(matrix, some.start, len(codes))
        return read.clone() if torch.is_grad_enabled() else read  # as gradients read it later
