"""Maps as the library sees them: made of a format's parts, and anew when its tensors moved."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrim.kernels.structures import (
    Codes,
    Map,
    Matrix,
    Numbers,
    TrellisCodes,
    address,
    readable,
)

Part = Codes | Numbers | TrellisCodes
GROUPS = (0, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Parts:
    """What a map computes with: y = direct x + second (first x).

    order: [out], int32; where each output stands in (first x, second first x), or None.
    input_scale: [in]; what x is multiplied by, or None.
    """

    direct: Part | None = None
    first: Part | None = None
    second: Part | None = None
    order: Tensor | None = None
    input_scale: Tensor | None = None


@dataclass(frozen=True)
class Made:
    """A structure, and the tensors whose addresses it holds."""

    structure: Map
    tensors: list[Tensor]


def made(parts: Parts, bias: Tensor | None, shape: tuple[int, int]) -> Made | None:
    """Return a map of shape (out, in) for the library; None where it cannot read it."""
    found = (parts.direct, parts.first, parts.second)
    tensors = [one for part in found if part is not None for one in part.tensors()]
    tensors += [one for one in (bias, parts.input_scale) if one is not None]
    fits = all(part.group in GROUPS for part in found if isinstance(part, Codes))
    if not fits or not readable(tensors) or not all(one.numel() for one in tensors):
        return None
    places = None
    if parts.order is not None:
        places = parts.order.argsort().to(torch.int32)
        tensors.append(places)
    structure = Map(
        *(Matrix() if part is None else part.structure() for part in found),
        address(places), address(bias), address(parts.input_scale), shape[1], shape[0],
    )  # fmt: skip
    return Made(structure, tensors)


class Kept:
    """A structure that is made when first asked for, and again when its tensors have moved.

    Copies and pickles of it are empty, as addresses mean nothing elsewhere.
    """

    def __init__(self) -> None:
        self._found: Any = None
        self._pointer: Any = None
        self._places: list[tuple[int, torch.Size]] = []

    def pointer(self, tensors: list[Tensor], make: Callable[[], Any]) -> Any:
        """Return a pointer to the structure that ``make`` returned, None where it returned none.

        tensors: all that it may depend on. make: returns what has a ``structure``, or None.
        """
        places = [(one.data_ptr(), one.shape) for one in tensors]
        if places != self._places:
            self._found = make()
            self._pointer = None
            if self._found is not None:
                self._pointer = ctypes.byref(self._found.structure)
            self._places = places
        return self._pointer

    @property
    def structure(self) -> Any:
        """Return the structure itself."""
        return self._found.structure

    @property
    def found(self) -> Any:
        """Return what ``make`` returned: the structure, and the tensors that it points to."""
        return self._found

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()
