"""The compiled library: found below this folder, or nowhere, and then torch does all of it."""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrim.kernels.structures import Block, Choice, Map, Matrix, Paths, Stack

ENDINGS = {"win32": ".dll", "darwin": ".dylib"}
# Not beside this file, where Python would take it for a module.
FILE = Path(__file__).with_name("built") / f"libspectrim{ENDINGS.get(sys.platform, '.so')}"
P, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
ARGUMENTS = {
    "product": (P, P, P, INT, INT),
    "before": (P, P, P, P, P, P, INT),
    "after": (P, P, P, P, P, LONG, P, INT),
    "stack": (P, P, P, P, LONG, P, INT),
    "rows": (P, P, LONG, LONG, P, INT),
    "norm": (P, P, ctypes.c_float, P, LONG, LONG, INT),
    "gated": (P, P, P, LONG, INT),
    "choose": (P, INT),
    "columns": (P, LONG, LONG, P, INT),
    "paths": (P,),
}
STRUCTURES = (Matrix, Map, Block, Stack, Choice, Paths)


class Library:
    """The functions of the library, and the scratch memory in which rows become dense.

    isa: the name of the instruction set in use: `avx512`, `avx2`, `dotprod`, `neon` or `plain`.
    product, before, after, stack, rows, norm, gated, choose, columns, paths: what source/kernels.h
        says; each returns 0, or 1 for no memory.
    """

    product: Any
    before: Any
    after: Any
    stack: Any
    rows: Any
    norm: Any
    gated: Any
    choose: Any
    columns: Any
    paths: Any

    def __init__(self, file: Path, isa: int = -1) -> None:
        self._library = ctypes.CDLL(str(file))
        self._library.spectrim_open.restype = ctypes.c_char_p
        name = self._library.spectrim_open(isa)
        if name is None:
            raise OSError(f"this processor lacks instruction set {isa} of {file}")
        self.isa = name.decode()
        self.threaded = bool(self._library.spectrim_threaded())
        if self._library.spectrim_sizes() != sum(map(ctypes.sizeof, STRUCTURES)):
            raise AttributeError(f"{file} has other structures")
        for name, arguments in ARGUMENTS.items():
            function = getattr(self._library, f"spectrim_{name}")
            function.argtypes = arguments
            setattr(self, name, function)
        self._local = threading.local()

    def scratch(self, count: int) -> Tensor:
        """Return a bf16 tensor [count] that the next call in this thread hands out again."""
        held: Tensor | None = getattr(self._local, "scratch", None)
        if held is None or len(held) < count:
            held = self._local.scratch = torch.empty(count, dtype=torch.bfloat16)
        return held[:count]

    def dense(self, matrix: Matrix, begin: int, count: int) -> Tensor:
        """Return rows of a matrix as bf16 [count, columns], in scratch memory."""
        to = self.scratch(count * matrix.columns)
        threads = torch.get_num_threads()
        checked(self.rows(ctypes.byref(matrix), None, begin, count, to.data_ptr(), threads))
        return to.view(count, matrix.columns)

    def dense_columns(self, matrix: Matrix, begin: int, count: int) -> Tensor:
        """Return codes of columns of paths as bf16 [count, rows], in scratch memory."""
        to = self.scratch(count * matrix.rows)
        threads = torch.get_num_threads()
        checked(self.columns(ctypes.byref(matrix), begin, count, to.data_ptr(), threads))
        return to.view(count, matrix.rows)


def checked(code: int) -> None:
    """Raise MemoryError where the library had none."""
    if code:
        raise MemoryError("the kernels had no memory for what lies between two products")


@cache
def library() -> Library | None:
    """Return the library, None where it was not built or cannot be loaded."""
    try:
        return Library(FILE)
    except OSError:
        return None
    except AttributeError:  # built before this version: other functions or structures
        warnings.warn(
            f"{FILE} is of another version, so models run without it, and slower; install "
            "spectrim again",
            stacklevel=2,
        )
        return None
