"""Steps and offsets of groups of numbers, each as a code of eight bits.

    step_ig = unit_i code_ig / 255,  0 <= code_ig < 256
    offset_ig = step_ig code'_ig 2^bits / 128,  -128 <= code'_ig < 128

Both are rounded once more to the dtype of the unit, of which a row has one, so that kernels that
take them in this dtype multiply what was rounded to. An offset reaches once the range of a group's
numbers to either side, in 1/128 of it. A group costs 16 bits where two numbers of the checkpoint
cost 32; QLoRA (2305.14314, section 3) stores steps in eight bits too. Where a row is one group its
step is the unit itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = 255
REACH = 128


def scales(unit: Float[Tensor, "rows 1"], code: Tensor | None) -> Float[Tensor, "rows groups"]:
    """Return steps in the dtype of the units; codes may be floats, None where rows are groups."""
    if code is None:
        return unit
    found: Tensor = (_wide(unit) * (code / LARGEST)).to(unit.dtype)
    return found


def offsets(
    scale: Float[Tensor, "rows groups"], code: Tensor, bits: int
) -> Float[Tensor, "rows groups"]:
    """Return offsets in the dtype of the steps; codes may be floats."""
    found: Tensor = (_wide(scale) * (code * (2**bits / REACH))).to(scale.dtype)
    return found


def scale_code(scale: Tensor, unit: Tensor) -> Tensor:
    """Return the codes, as floats, of what comes nearest to steps; unit 0 has only zeros."""
    parts = scale / torch.where(unit > 0, unit, 1.0) * LARGEST
    found: Tensor = parts.round().clamp(0, LARGEST)
    return found


def offset_code(offset: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the codes, as floats, of what comes nearest to offsets."""
    parts = offset / torch.where(scale > 0, scale, 1.0) * (REACH / 2**bits)
    found: Tensor = parts.round().clamp(-REACH, REACH - 1)
    return found


def least_scale(middle: Tensor, bits: int) -> Tensor:
    """Return the steps that offsets need to reach so far from zero."""
    found: Tensor = middle.abs() / 2**bits
    return found


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Grid:
    """How numbers are rounded: bits of each, how many share a step (0: a row), symmetric or not."""

    bits: int
    group: int
    symmetric: bool

    @property
    def lowest(self) -> int:
        """Return the smallest whole number; the largest is -lowest - 1."""
        return -(1 << self.bits - 1)
