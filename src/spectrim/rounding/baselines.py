"""The dense model with its weights in eight and four bits: what a smaller model has to beat.

Rounding to the nearest, without calibration, in the two common layouts:

int8: one step for each output channel, symmetric.
int4: a step and an offset for every 32 neighbours along the input, as Q4_1 of llama.cpp has them:
    5 bits for each number. The offset lets weights pass that lie on such a grid already.

Only the linear maps of the blocks are quantised, those of experts among them; embedding, head and
norms stay as they are. The copies hold the values that the quantised weights stand for, in the
model's dtype. So their quality is that of the quantised weights, and their bytes are counted, but
their speed and memory are the dense model's and are not shown.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spectrim.errors import UnavailableError
from spectrim.model import sites
from spectrim.model.experts import maps

Bits = Literal[4, 8]

BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
GROUP = 32
SCHEME = 1  # raised whenever the rounding changes, so that no old answer is taken for a new one
SCALE_BYTES = 2  # steps and offsets are kept in bf16


def of(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Return the baselines of a dense model by label, "int8" and "int4"; each is a whole copy.

    Raises:
        UnavailableError: the model is not dense.
    """
    return {label: weight_only(model, bits) for label, bits in BITS.items()}


def weight_only(model: PreTrainedModel, bits: Bits) -> PreTrainedModel:
    """Return a copy of a dense model whose blocks' linear maps are rounded to 8 or 4 bits.

    Raises:
        UnavailableError: the model is not dense.
    """
    copied: Any = copy.deepcopy(model)
    with torch.no_grad():
        for matrix in _matrices(copied):
            matrix.copy_(rounded(matrix, bits))
    copied.weight_bits = bits  # what ``stored_bytes`` needs to know
    return copied  # type: ignore[no-any-return]


def stored_bytes(model: PreTrainedModel) -> int:
    """Return the bytes that a model of ``weight_only`` takes on disk, packed, file headers apart.

    An int4 number takes half a byte; steps and offsets take two bytes each.
    """
    quantised: Any = model
    held = {id(one): one for one in model.state_dict(keep_vars=True).values()}  # tied ones once
    whole: int = sum(one.numel() * one.element_size() for one in held.values())
    dense = packed = 0
    for matrix in _matrices(model):
        dense += matrix.numel() * matrix.element_size()
        packed += _packed_bytes(*matrix.shape, bits=quantised.weight_bits)
    return whole - dense + packed


def rounded(weight: Float[Tensor, "out in"], bits: Bits) -> Float[Tensor, "out in"]:
    """Return the values that a matrix has after quantisation to 8 or 4 bits, in float32."""
    return _int8(weight.float()) if bits == 8 else _int4(weight.float())


def _int8(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    step = _kept(weight.abs().amax(dim=1, keepdim=True) / 127)  # [out, 1]
    return (weight / step).round().clamp(-127, 127) * step


def _int4(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    out, width = weight.shape
    # The numbers that fill up a short last group are of its own, so that they do not widen it.
    full = functional.pad(weight[None], (0, -width % GROUP), mode="replicate")[0]
    groups = full.reshape(out, -1, GROUP)
    low, high = groups.aminmax(dim=2, keepdim=True)  # [out, groups, 1] each
    step, offset = _kept((high - low) / 15), low.bfloat16().float()
    whole = ((groups - offset) / step).round().clamp(0, 15)
    return (whole * step + offset).reshape(out, -1)[:, :width]


def _kept(step: Tensor) -> Tensor:
    """Return steps as they are kept, in bf16; where all numbers are equal, any will do."""
    kept = step.bfloat16().float()
    return torch.where(kept > 0, kept, 1.0)


def _packed_bytes(rows: int, width: int, *, bits: int) -> int:
    if bits == 8:
        return rows * (width + SCALE_BYTES)
    return rows * (-(-width // 2) + 2 * SCALE_BYTES * -(-width // GROUP))


def _matrices(model: PreTrainedModel) -> Iterator[Float[Tensor, "out in"]]:
    """Yield the matrix of every linear map in the blocks; writing into it changes the model."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for site in sites.find(model):
        if site.block < 0:
            continue
        if site.name not in modules:  # an expert that is packed with the others: a view of them
            path = site.name.rsplit(".", 2)[0]
            for index, part, linear in maps(modules[path]):
                modules[f"{path}.{index}.{part}"] = linear
        module = modules[site.name]
        weight = getattr(module, "weight", None)
        dense = isinstance(weight, Tensor) and weight.is_floating_point()
        if not dense or not isinstance(module, nn.Linear | Conv1D):
            raise UnavailableError(
                f"'{site.name}' is a {type(module).__name__}; "
                "the int8 and int4 baselines need a dense model"
            )
        yield sites.weight(module)
