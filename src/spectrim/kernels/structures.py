"""What the C library is given: matrices, maps and blocks, as source/matrix.h and block.h have them.

Structures hold addresses of tensors. Whoever makes one keeps the tensors, and makes a new one when
they have moved.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

PLAIN = 16  # bits of a number that is no code
TRELLIS = 64  # what ``bits`` says of paths through a trellis


class Matrix(ctypes.Structure):
    """A matrix of codes, or of bf16 numbers; all zeros where there is none."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
        ("scale_code", ctypes.c_void_p),
        ("offset_code", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
    ]


class Map(ctypes.Structure):
    """A map y = direct x + second (first x) + bias; what is not there is zero."""

    _fields_ = [
        ("direct", Matrix),
        ("first", Matrix),
        ("second", Matrix),
        ("places", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("input_scale", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
    ]


class Block(ctypes.Structure):
    """A block of the Llama family."""

    _fields_ = [
        *((name, Map) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("norm", "middle_norm", "query_norm", "key_norm")),
        ("eps", ctypes.c_float),
        ("scaling", ctypes.c_float),
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("key_heads", ctypes.c_int32),
        ("head", ctypes.c_int32),
    ]


class Stack(ctypes.Structure):
    """Blocks one behind the other, and the buffer of their keys and values."""

    _fields_ = [
        ("blocks", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        ("room", ctypes.c_int64),
        ("count", ctypes.c_int32),
    ]


class Choice(ctypes.Structure):
    """Columns of a matrix whose codes are chosen one after the other."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in
          ("wanted", "before", "scale", "offset", "places", "values", "changes", "coupling",
           "levels", "edges")),
        ("columns", ctypes.c_int32),
        ("levels_count", ctypes.c_int32),
        ("rows", ctypes.c_int64),
    ]  # fmt: skip


class Paths(ctypes.Structure):
    """A matrix whose columns are coded as paths through a trellis."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in
          ("left", "weights", "row_scale", "column_scale", "coupling", "values", "codes")),
        ("spread", ctypes.c_float),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("columns", "rows", "rate")),
        ("column_bytes", ctypes.c_int64),
    ]  # fmt: skip


@dataclass(frozen=True)
class Codes:
    """A packed matrix in its tensors, as formats/packed/matrix.py names them."""

    packed: Tensor
    row_scale: Tensor
    scale_code: Tensor | None
    offset_code: Tensor | None
    columns: int
    bits: int
    group: int

    def tensors(self) -> list[Tensor]:
        """Return what the structure holds the addresses of."""
        found = (self.packed, self.row_scale, self.scale_code, self.offset_code)
        return [one for one in found if one is not None]

    def structure(self) -> Matrix:
        """Return the structure."""
        return Matrix(
            *(address(one) for one in
              (self.packed, self.row_scale, self.scale_code, self.offset_code)),
            self.packed.shape[1], self.packed.shape[0], self.columns, self.bits, self.group,
        )  # fmt: skip


@dataclass(frozen=True)
class TrellisCodes:
    """A matrix of paths through a trellis, as formats/packed/trellis_matrix.py has it."""

    codes: Tensor
    """[columns, bytes]"""
    row_scale: Tensor
    rate: int

    def tensors(self) -> list[Tensor]:
        """Return what the structure holds the addresses of."""
        return [self.codes, self.row_scale]

    @property
    def columns(self) -> int:
        """Return how many inputs there are."""
        return len(self.codes)

    def structure(self) -> Matrix:
        """Return the structure."""
        columns, each = self.codes.shape
        return Matrix(address(self.codes), address(self.row_scale), None, None, each,
                      self.row_scale.numel(), columns, TRELLIS, self.rate)  # fmt: skip


@dataclass(frozen=True)
class Numbers:
    """A matrix of bf16 numbers [rows, columns]."""

    matrix: Tensor

    def tensors(self) -> list[Tensor]:
        """Return what the structure holds the address of."""
        return [self.matrix]

    def structure(self) -> Matrix:
        """Return the structure."""
        rows, columns = self.matrix.shape
        at = address(self.matrix)
        return Matrix(at, None, None, None, 2 * columns, rows, columns, PLAIN, 0)


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's numbers begin."""
    return None if tensor is None else tensor.data_ptr()


def readable(tensors: Iterable[Tensor], numbers: torch.dtype = torch.bfloat16) -> bool:
    """Return whether the library can read these: on the processor, in one piece, floats in bf16."""
    return all(
        one.device.type == "cpu"
        and one.is_contiguous()
        and (one.dtype == numbers or not one.is_floating_point())
        for one in tensors
    )
