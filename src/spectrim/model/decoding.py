"""Models that are used, not trained: by the compiled kernels wherever these fit."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.trellis_matrix import TrellisMatrix
from spectrim.kernels.library import library
from spectrim.model.block_decoding import FAMILIES, Decoding
from spectrim.model.elementwise import use_elementwise
from spectrim.model.stacked_decoding import MODELS, StackedDecoding


def use_kernels(model: nn.Module) -> None:
    """Let a model compute with the compiled library, where there is one, unless it learns.

    Inputs of products are rounded to eight bits in groups of 32 while a few tokens are computed.
    """
    if library() is None:
        return
    for module in list(model.modules()):
        if isinstance(module, PackedMatrix):
            module.native.allowed = True
        if isinstance(module, TrellisMatrix):
            module.native = True
        use_elementwise(module)
        target: Any = module
        if type(module).__module__.startswith("transformers"):
            if type(module).__name__ in FAMILIES:
                target.forward = Decoding(module)
            if type(module).__name__ in MODELS:
                target.forward = StackedDecoding(module)
