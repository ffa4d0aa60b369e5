"""Steps and offsets of groups of numbers, each as a code of eight bits.

    step_ig = unit_i code_ig,  0 <= code_ig < 256
    offset_ig = step_ig code'_ig 2^bits / 128,  -128 <= code'_ig < 128

A row has one unit, in the checkpoint's dtype. So the offset reaches once the range of a group's
numbers to either side, in 1/128 of it, and a group costs 16 bits where two numbers of the
checkpoint cost 32; QLoRA (2305.14314, section 3) stores steps in eight bits too. Where a row is one
group its step is the unit itself.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LARGEST = 255
ROOM = 1.25  # how much larger than any step that a row begins with its steps may become
REACH = 128


def scales(
    unit: Float[Tensor, "rows 1"], code: UInt8[Tensor, "rows groups"] | None
) -> Float[Tensor, "rows groups"]:
    """Return steps, in float32 at least."""
    wide = unit.to(torch.promote_types(unit.dtype, torch.float32))
    return wide if code is None else wide * code


def offsets(
    scale: Float[Tensor, "rows groups"], code: Tensor, bits: int
) -> Float[Tensor, "rows groups"]:
    """Return offsets in the dtype of the steps; their codes may be floats."""
    found: Tensor = scale * code * (2**bits / REACH)
    return found


def units(largest: Float[Tensor, "rows 1"], dtype: torch.dtype) -> Float[Tensor, "rows 1"]:
    """Return the unit of rows whose largest steps are known, with room for larger ones."""
    return (largest * (ROOM / LARGEST)).to(dtype)


def scale_code(scale: Tensor, unit: Tensor) -> Tensor:
    """Return the codes, as floats, of what comes nearest to steps; unit 0 has only zeros."""
    return (scale / torch.where(unit > 0, unit, 1.0)).round().clamp(0, LARGEST)


def offset_code(offset: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the codes, as floats, of what comes nearest to offsets."""
    parts = offset / torch.where(scale > 0, scale, 1.0) * (REACH / 2**bits)
    found: Tensor = parts.round().clamp(-REACH, REACH - 1)
    return found


def least_scale(middle: Tensor, bits: int) -> Tensor:
    """Return the steps that offsets need to reach so far from zero."""
    found: Tensor = middle.abs() / 2**bits
    return found
