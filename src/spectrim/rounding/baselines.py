"""The dense model with its weights in eight and four bits: what a smaller model has to beat.

Rounding to the nearest, without calibration, in the two common layouts:

int8: one scale for each output channel, symmetric.
int4: a scale and an offset for every 32 neighbours along the input, as Q4_1 of llama.cpp has them:
    5 bits for each weight. The offset lets weights pass that lie on such a grid already.

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
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spectrim.errors import UnavailableError
from spectrim.formats.packed.scales import dequantize, quantize
from spectrim.model import sites
from spectrim.model.experts import maps
from spectrim.rounding.nearest import in_groups

Bits = Literal[4, 8]

BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
GROUP = 32
SCHEME = 1  # raised whenever the rounding changes, so that no old answer is taken for a new one
SCALE_BYTES = 2  # scales and offsets are kept in bf16


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

    An int4 code takes half a byte; scales and offsets take two bytes each.
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


# Scales are not those of `nearest`: the common layouts take them from the whole range of a group,
# and do not quantise them once more. Rounding and dequantising are shared.
def _int8(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    scale = _stored(weight.abs().amax(dim=1, keepdim=True) / 127)  # [out, 1]
    codes = quantize(weight, scale, torch.zeros_like(scale), (-127, 127))
    return dequantize(codes, scale)


def _int4(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    groups = in_groups(weight, GROUP)
    low, high = groups.aminmax(dim=2, keepdim=True)  # [out, groups, 1] each
    scale, offset = _stored((high - low) / 15), low.bfloat16().float()
    values = dequantize(quantize(groups, scale, offset, (0, 15)), scale, offset)
    return values.flatten(1)[:, : weight.shape[1]]


def _stored(scale: Tensor) -> Tensor:
    """Return scales as they are stored, in bf16; where all weights are equal, any will do."""
    stored = scale.bfloat16().float()
    return torch.where(stored > 0, stored, 1.0)


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
