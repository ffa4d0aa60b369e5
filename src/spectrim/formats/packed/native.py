"""Products of a packed matrix by the compiled kernels, for models that are used and do not learn.

A few tokens are multiplied with the codes as they are, inputs in eight bits (kernels/source). For
more, some rows at a time are made dense in memory that is used again, and torch multiplies them.
"""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import BFloat16, Int64
from torch import Tensor
from torch.nn import functional

from spectrim.kernels.library import Library, checked, library
from spectrim.kernels.maps import GROUPS, Kept, Parts, made
from spectrim.kernels.structures import Codes, readable

FEW = 12  # tokens up to which products with codes are faster than with what they stand for
AT_ONCE = 1 << 23  # weights that are made dense at a time; smaller products are slower each


class Native:
    """What the kernels need to know of one matrix; nothing of it is stored or copied.

    allowed: whether they may multiply. Only what opens a model to use it says so.
    """

    def __init__(self) -> None:
        self.allowed = False
        self._kept = Kept()

    def takes(self, part: Codes, dtype: torch.dtype) -> bool:
        """Return whether the kernels multiply this matrix with inputs of a dtype."""
        if not self.allowed or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return False
        fits = part.group in GROUPS and part.packed.numel() and readable(part.tensors())
        return bool(fits) and library() is not None

    @torch.no_grad()
    def product(
        self, part: Codes, x: BFloat16[Tensor, "tokens columns"]
    ) -> BFloat16[Tensor, "tokens rows"]:
        """Return x Wᵀ."""
        call = _library()
        pointer = self._map(part)
        if len(x) > FEW:
            return self._dense_product(call, x)
        x = x.contiguous()
        y = x.new_empty(len(x), len(part.packed))
        threads = torch.get_num_threads()
        checked(call.product(pointer, x.data_ptr(), y.data_ptr(), len(x), threads))
        return y

    @torch.no_grad()
    def rows(self, part: Codes, index: Int64[Tensor, " some"]) -> BFloat16[Tensor, "some columns"]:
        """Return the rows that an index names.

        Raises:
            IndexError: it names one that there is not.
        """
        last = len(part.packed) - 1
        if int(index.min()) < 0 or int(index.max()) > last:
            raise IndexError(f"a row outside 0 to {last} was asked for")
        call, index = _library(), index.contiguous()
        self._map(part)
        found = torch.empty(len(index), part.columns, dtype=torch.bfloat16)
        matrix, threads = self._kept.structure.direct, torch.get_num_threads()
        checked(call.rows(ctypes.byref(matrix), index.data_ptr(), 0, len(index),
                          found.data_ptr(), threads))  # fmt: skip
        return found

    def _dense_product(self, call: Library, x: Tensor) -> Tensor:
        matrix = self._kept.structure.direct
        step = max(16, AT_ONCE // matrix.columns)
        parts = [
            functional.linear(x, call.dense(matrix, begin, min(step, matrix.rows - begin)))
            for begin in range(0, matrix.rows, step)
        ]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def _map(self, part: Codes) -> object:
        """Return a pointer to this matrix as a map of its own."""
        shape = (len(part.packed), part.columns)
        found: object = self._kept.pointer(part.tensors(), lambda: made(Parts(part), None, shape))
        return found


def _library() -> Library:
    found = library()
    assert found is not None, "takes() said that there is one"
    return found
