"""A matrix as codes of one, two, three, four or eight bits, packed, with their scales and offsets.

What codes, scales and offsets are says scales.py.
Layout of ``packed`` [out, ⌈in bits / 8⌉]: a row is a run of bits, that of code j beginning at bit
j bits; bit k is bit k mod 8 of byte ⌊k / 8⌋, so that the lowest bit comes first. A code is a two's
complement of its bits, that of one bit a sign, set for -1. A row's last byte is filled up with
zeros.

A model that was opened to be used computes with kernels that read ``packed`` as it is (native.py).
Otherwise, and without the compiled library, products are computed by torch's own fused kernels for
processors, those that torchao calls: int4 for codes in groups (twice for eight bits), int8 for
eight bits in symmetric rows. They want a layout of their own, made at the first product and kept
beside ``packed`` in memory: four bits a code more, eight for eight, for int8 none. Everything else,
and whatever needs a gradient, is multiplied some rows at a time, so that no dense copy is held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spectrim.formats.packed.native import Native
from spectrim.formats.packed.scales import Grid, dequantize, offsets, scales
from spectrim.kernels.structures import Codes

WORDS = {1: 1, 2: 1, 3: 3, 4: 1, 8: 1}  # bits → bytes after which codes begin at a byte again
KERNEL_GROUPS = (32, 64, 128, 256)
KERNEL_ROWS = 16  # outputs come in multiples of this
KERNEL_DTYPES = (torch.bfloat16, torch.float32)
ALIGNED = 64  # bytes
AT_ONCE = 1 << 20  # weights that are dequantised at a time
ALL = slice(None)


def pack(codes: Int8[Tensor, "rows columns"], bits: int) -> UInt8[Tensor, "rows bytes"]:
    """Return codes, each in its bits, in the layout above."""
    word = WORDS[bits]
    each = 8 * word // bits
    codes = (codes < 0) if bits == 1 else codes
    full = functional.pad(codes.to(torch.int32), (0, -codes.shape[1] % each))
    parts = (full & (1 << bits) - 1).unflatten(1, (-1, each))
    words: Tensor = (parts << bits * torch.arange(each, dtype=torch.int32)).sum(-1)
    lanes = words[..., None] >> 8 * torch.arange(word, dtype=torch.int32) & 255
    kept: Tensor = lanes.flatten(1)[:, : row_bytes(codes.shape[1], bits)]
    return kept.to(torch.uint8).contiguous()


def unpack(
    packed: UInt8[Tensor, "rows bytes"], columns: int, bits: int
) -> Int8[Tensor, "rows columns"]:
    """Return the codes that were packed."""
    if bits == 8:
        return packed.view(torch.int8)
    word = WORDS[bits]
    each = 8 * word // bits
    full = functional.pad(packed, (0, -packed.shape[1] % word)).unflatten(1, (-1, word))
    lanes = torch.arange(word, dtype=torch.int32, device=packed.device)
    words = (full.to(torch.int32) << 8 * lanes).sum(-1, dtype=torch.int32)
    places = bits * torch.arange(each, dtype=torch.int32, device=packed.device)
    raw: Tensor = words[..., None] >> places & (1 << bits) - 1
    sign = 1 << bits - 1
    parts = 1 - 2 * raw if bits == 1 else (raw ^ sign) - sign
    return parts.flatten(1)[:, :columns].to(torch.int8)


def row_bytes(columns: int, bits: int) -> int:
    """Return the bytes that the codes of a row take."""
    return -(-columns * bits // 8)


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor where the int8 kernel can read it; elsewhere, as in a file, it crashes."""
    placed = tensor.is_contiguous() and tensor.data_ptr() % ALIGNED == 0
    return tensor if placed else tensor.clone(memory_format=torch.contiguous_format)


class PackedMatrix(nn.Module):
    """W [rows, columns] as packed codes with scales, and with offsets where the grid has them.

    unit: [rows, 1], the row scales, a parameter in the checkpoint's dtype. It is called what its
        tensor in the checkpoint is called; everywhere else it is ``row_scale``.
    scale_code, offset_code: [rows, groups]; None where a row is one group, and where symmetric.
    """

    packed: UInt8[Tensor, "rows bytes"]
    scale_code: UInt8[Tensor, "rows groups"] | None
    offset_code: Int8[Tensor, "rows groups"] | None
    _layout: Tensor | None
    _scales_and_offsets: Tensor | None

    def __init__(self, rows: int, columns: int, grid: Grid) -> None:
        super().__init__()
        self.rows, self.columns, self.grid = rows, columns, grid
        groups = grid.groups(columns)
        empty = torch.empty(rows, row_bytes(columns, grid.bits), dtype=torch.uint8)
        self.register_buffer("packed", empty)
        self.unit = nn.Parameter(torch.empty(rows, 1))
        codes = torch.empty(rows, groups, dtype=torch.uint8)
        self.register_buffer("scale_code", None if groups == 1 else codes)
        self.register_buffer("offset_code", None if grid.symmetric else codes.to(torch.int8))
        self.native = Native()
        self.register_buffer("_layout", None, persistent=False)
        self.register_buffer("_scales_and_offsets", None, persistent=False)

    @staticmethod
    def stored_bytes(shape: tuple[int, int], grid: Grid, dtype: torch.dtype) -> int:
        """Return the bytes on disk of a matrix of this shape, (rows, columns).

        dtype: of the row scales.
        """
        rows, columns = shape
        groups = grid.groups(columns)
        codes = groups * ((groups > 1) + (not grid.symmetric))
        return rows * (row_bytes(columns, grid.bits) + codes + dtype.itemsize)

    @torch.no_grad()
    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take ``codes`` (int8) [rows, columns], ``unit`` and the codes of scales and offsets."""
        self.packed.copy_(pack(pieces["codes"], self.grid.bits))
        for name in ("unit", "scale_code", "offset_code"):
            if (own := getattr(self, name)) is not None:
                own.copy_(pieces[name])
        self.forget()

    def scales(self, rows: slice | Tensor = ALL) -> Float[Tensor, "some groups"]:
        """Return the scales of some rows in the dtype of ``unit``; they have its gradients."""
        return scales(self.unit[rows], None if self.scale_code is None else self.scale_code[rows])

    def offsets(self, rows: slice | Tensor = ALL) -> Float[Tensor, "some groups"] | None:
        """Return the offsets of some rows, as the scales; None where there are none."""
        if self.offset_code is None:
            return None
        return offsets(self.scales(rows), self.offset_code[rows], self.grid.bits)

    def codes(self, begin: int = 0, end: int | None = None) -> Int8[Tensor, "some columns"]:
        """Return the codes of some rows."""
        return unpack(self.packed[begin:end], self.columns, self.grid.bits)

    def dense(self, begin: int = 0, end: int | None = None) -> Float[Tensor, "some columns"]:
        """Return some rows of the matrix in the dtype of ``unit``; it has its gradients."""
        return self._dequantized(self.codes(begin, end), slice(begin, end))

    def rows_at(self, index: Tensor) -> Float[Tensor, "*index columns"]:
        """Return the rows that an index names, nothing else being unpacked."""
        flat = index.reshape(-1)
        native = self.native.allowed and len(flat) > 0 and not torch.is_grad_enabled()
        if native and self.native.takes(self.part(), self.dtype) and flat.dtype == torch.int64:
            return self.native.rows(self.part(), flat).reshape(*index.shape, self.columns)
        rows = self._dequantized(unpack(self.packed[flat], self.columns, self.grid.bits), flat)
        return rows.reshape(*index.shape, self.columns)

    def product(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Return x Wᵀ."""
        flat = x.reshape(-1, self.columns)
        learns = torch.is_grad_enabled() and (
            x.requires_grad or any(one.requires_grad for one in self.parameters())
        )
        if learns:
            self.forget()  # the scales are about to change
        fused = None if learns or not len(flat) else self._kernel(flat)
        y = self._by_rows(flat, learns) if fused is None else fused(flat)
        return y.reshape(*x.shape[:-1], self.rows)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the scales, which is that of the checkpoint."""
        return self.unit.dtype

    def forget(self) -> None:
        """Drop what the kernels keep, as must happen when codes, scales or offsets change."""
        self._layout = self._scales_and_offsets = None

    def extra_repr(self) -> str:
        """Return shape, bits and group for ``print(model)``."""
        group = self.grid.group or "a row"
        return f"{self.rows} x {self.columns}, {self.grid.bits} bits, groups of {group}"

    def _dequantized(
        self, codes: Shaped[Tensor, "some columns"], rows: slice | Tensor
    ) -> Float[Tensor, "some columns"]:
        """Return what codes of some rows stand for, computed in float32 at least, rounded once."""
        scale, offset = self.scales(rows), self.offsets(rows)
        wide = torch.promote_types(scale.dtype, torch.float32)
        spread = None if offset is None else self._spread(offset.to(wide))
        return dequantize(codes.to(wide), self._spread(scale.to(wide)), spread).to(scale.dtype)

    def _spread(self, each: Float[Tensor, "some groups"]) -> Float[Tensor, "some columns"]:
        """Return what belongs to groups beside every code; a whole row's is not repeated."""
        if each.shape[1] == 1:
            return each
        return each.repeat_interleave(self.grid.group, dim=1)[:, : self.columns]

    def _by_rows(self, x: Tensor, learns: bool) -> Tensor:
        """Return x Wᵀ, some rows at a time; for gradients they are dequantised once more."""
        step = max(1, AT_ONCE // self.columns)

        def some(x: Tensor, begin: int) -> Tensor:
            return functional.linear(x, self.dense(begin, begin + step).to(x.dtype))

        parts = [
            checkpoint(some, x, begin, use_reentrant=False, preserve_rng_state=False)
            if learns
            else some(x, begin)
            for begin in range(0, max(self.rows, 1), step)
        ]
        return torch.cat(parts, dim=-1)

    def _kernel(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Return the fused kernel that fits these inputs, None where none does."""
        if not self.rows or x.device.type != "cpu":
            return None
        if self.native.allowed and self.native.takes(self.part(), x.dtype):
            return partial(self.native.product, self.part())
        if x.dtype != self.dtype or x.dtype not in KERNEL_DTYPES:
            return None
        if self.grid.group in KERNEL_GROUPS:
            return self._int4
        rows, columns = self.rows % KERNEL_ROWS, self.columns % KERNEL_ROWS
        if self.grid.bits == 8 and self.scale_code is None and self.offset_code is None:
            return None if rows or columns else self._int8
        return None

    def part(self) -> Codes:
        """Return what the library is given of this matrix."""
        codes = (self.packed, self.unit.detach(), self.scale_code, self.offset_code)
        return Codes(*codes, self.columns, self.grid.bits, self.grid.group)

    def _int8(self, x: Tensor) -> Tensor:
        self.packed = _aligned(self.packed)
        scale = self.unit[:, 0].contiguous()
        product: Tensor = torch._weight_int8pack_mm(_aligned(x), self.codes(), scale)
        return product

    def _int4(self, x: Tensor) -> Tensor:
        """Multiply by (code + 8 - 8) scale + offset, padded to the sizes that the kernel knows."""
        if self._layout is None or self._scales_and_offsets is None:
            made = [self._for_int4(*part) for part in self._nibbles()]
            layouts, both = zip(*made, strict=True)
            self._layout, self._scales_and_offsets = torch.stack(layouts), torch.stack(both)
        multiply: Any = torch.ops.aten._weight_int4pack_mm_for_cpu
        full = functional.pad(x, (0, -self.columns % self.grid.group)).contiguous()
        parts = [
            multiply(full, layout, self.grid.group, both)
            for layout, both in zip(self._layout, self._scales_and_offsets, strict=True)
        ]
        whole: Tensor = sum(parts[1:], parts[0])
        return whole[:, : self.rows]

    @torch.no_grad()
    def _nibbles(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return codes of four bits with scales and offsets, of which the matrix is the sum.

        Eight bits are 16 x the upper four, with their sign, and the lower four, 0 to 15.
        """
        codes, scale, offset = self.codes(), self.scales(), self.offsets()
        offset = torch.zeros_like(scale) if offset is None else offset
        if self.grid.bits < 8:
            return [(codes, scale, offset)]
        return [(codes >> 4, 16 * scale, offset), ((codes & 15) - 8, scale, 8 * scale)]

    def _for_int4(self, codes: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        below = -self.rows % KERNEL_ROWS
        above = codes.to(torch.int32) + 8  # 0 to 15
        above = functional.pad(above, (0, -self.columns % self.grid.group, 0, below))
        both = torch.stack((scale, offset), dim=-1)  # [rows, groups, 2]
        both = functional.pad(both, (0, 0, 0, 0, 0, below)).transpose(0, 1).contiguous()
        convert: Any = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        return convert(above, 1), both

    def _apply(self, *args: Any, **kwargs: Any) -> PackedMatrix:
        self.forget()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call, no-any-return]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)
