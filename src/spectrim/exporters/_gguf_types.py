"""Which of llama.cpp's types a tensor is stored in, and its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from torch import Tensor

from spectrim.exporters._gguf_blocks import BLOCK, blocks, codes_of, kind_of
from spectrim.formats.packed.matrix import PackedMatrix

PLAIN = (Kind.F32, Kind.F16)
LARGEST = 65504  # of float16


@dataclass(frozen=True)
class Stored:
    """A tensor on its way into the file."""

    name: str
    """As llama.cpp calls it."""
    shape: tuple[int, ...]
    """[out, in], or [experts, out, in], or [length]."""
    dense: Callable[[], Tensor]
    """Makes it, in this shape, each time anew."""
    packed: tuple[PackedMatrix, ...] = ()
    """The packed matrices that lie below each other in it, if it is nothing else."""
    order: Tensor | None = None
    """Which of their rows comes where."""
    rounded: bool = False
    """Whether it was rounded to few bits already, but is no packed matrix: a product of packed
    factors, paths through a trellis."""


Choose = Callable[[Stored], Kind]
"""A tensor → the type it is stored in."""


def as_held(tensor: Stored) -> Kind:
    """Return the type that keeps what a tensor holds, the codes of a packed one as they are.

    Norms, biases and routers stay float32. A product of packed factors takes Q8_0, and so do paths
    through a trellis: its rounding is far finer than that which they went through. Everything else
    takes float16.
    """
    if len(tensor.shape) == 1 or tensor.name.startswith("position_embd") or _routes(tensor):
        return Kind.F32
    if tensor.packed:
        kind = kind_of(tensor.packed[0].grid, tensor.shape[-1])
        if kind is not None:
            return kind
    if (tensor.rounded or tensor.packed) and tensor.shape[-1] % BLOCK == 0:
        return Kind.Q8_0
    return Kind.F16 if tensor.dense().abs().max() <= LARGEST else Kind.BF16


def keeps_codes(tensor: Stored, kind: Kind) -> bool:
    """Return whether this type holds a tensor's packed codes as they are."""
    return bool(tensor.packed) and kind is kind_of(tensor.packed[0].grid, tensor.shape[-1])


def encoded(tensor: Stored, kind: Kind) -> np.ndarray:
    """Return a tensor's numbers as the type stores them, or its bytes row by row."""
    if keeps_codes(tensor, kind):
        shape = (tensor.shape[0], tensor.shape[1])
        return blocks(codes_of(tensor.packed, tensor.order, shape), kind)
    values = tensor.dense().to(torch.float32)
    if kind is Kind.F16:
        half: np.ndarray = values.half().numpy()
        return half
    numbers: np.ndarray = values.numpy()
    return numbers if kind is Kind.F32 else quantize(numbers, kind)


def _routes(tensor: Stored) -> bool:
    return ".ffn_gate_inp." in tensor.name
