"""A model's tensors under llama.cpp's names, in the order of rows that it expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_TENSOR, TENSOR_NAMES, TensorNameMap, get_tensor_name_map
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spectrim.errors import SpectrimError
from spectrim.exporters._dense_tensors import DenseTensors, padded
from spectrim.exporters._gguf_families import Family, head_dim, rope_of
from spectrim.exporters._gguf_layout import Layout
from spectrim.exporters._gguf_types import Stored
from spectrim.formats import FactoredLinear
from spectrim.model.fused import Fused
from spectrim.model.fused import Layout as FusedLayout

ATTENTION = ("q", "k", "v", "o", "qkv")
EXPERTS = {
    "gate_up_proj": (MODEL_TENSOR.FFN_GATE_EXP, MODEL_TENSOR.FFN_UP_EXP),
    "down_proj": (MODEL_TENSOR.FFN_DOWN_EXP,),
}


@dataclass(frozen=True)
class _Tensor:
    """One of the stock class's tensors: its name, and where it is."""

    name: str
    block: int | None
    path: str
    """Of its module inside the block; of the whole path outside the blocks."""
    role: str
    """Of its module, empty where that is no linear map."""

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]


def stored_tensors(held: DenseTensors, family: Family, layout: Layout) -> list[Stored]:
    """Return every tensor that the file holds."""
    names = get_tensor_name_map(layout.arch, len(layout.widths))
    found = [
        made for one in _each(held, family) for made in _stored(held, family, layout, names, one)
    ]
    return [*found, *_rope_factors(held)]


def _each(held: DenseTensors, family: Family) -> Iterator[_Tensor]:
    stack = held.architecture.stacks[0].path + "."
    again = [f"{held.architecture.head}.weight"] if family.head_apart and held.tied() else []
    for name in held.names() + again:
        path, block = name.rpartition(".")[0], None
        if name.startswith(stack):
            number, _, path = path.removeprefix(stack).partition(".")
            block = int(number)
        role = "" if block is None else held.architecture.roles.get(path, "")
        yield _Tensor(name, block, path, role)


def _stored(
    held: DenseTensors, family: Family, layout: Layout, names: TensorNameMap, one: _Tensor
) -> Iterator[Stored]:
    if one.block is not None and layout.heads[one.block] == 0 and _of_attention(one):
        return
    if one.kind in EXPERTS:
        yield from _experts(held, one)
        return
    name = names.get_name(one.name, try_suffixes=(".weight", ".bias"))
    if name is None or (one.kind == "bias" and one.role and one.role not in family.biased):
        arch = layout.arch.name.lower()
        raise SpectrimError(f"llama.cpp's {arch} has no place for '{one.name}'; export --to dense")
    conv = isinstance(held.stock.get_submodule(one.module), Conv1D) and one.kind == "weight"
    shape = held.shape(one.name)
    shape = _widened(shape[::-1] if conv else shape, one, layout)
    order, parted = _order(held, layout, one), isinstance(_module(held, one), Fused)
    packed = held.packed(one.module) if one.kind == "weight" else []
    raised = float(family.one_more and "norm" in one.path)

    def dense() -> Tensor:
        tensor = held.tensor(one.name, torch.float32)
        tensor = (tensor.T if conv else tensor).float() + raised
        return padded(tensor if order is None else tensor[order], shape)

    rounded = one.kind == "weight" and not packed and _rounded(_module(held, one))
    yield Stored(name, shape, dense, tuple(packed), None if parted else order, rounded)


def _of_attention(one: _Tensor) -> bool:
    return one.role in ATTENTION or one.path == "input_layernorm"


def _module(held: DenseTensors, one: _Tensor) -> Any:
    return held.model.get_submodule(one.module)


def _rounded(module: nn.Module) -> bool:
    """Return whether all of a map went through few bits; its parts, where it is fused."""
    parts = list(module.children()) if isinstance(module, Fused) else [module]
    return all(isinstance(part, FactoredLinear) and part.rounded for part in parts)


def _widened(shape: tuple[int, ...], one: _Tensor, layout: Layout) -> tuple[int, ...]:
    """Return the shape of a tensor whose MLP has this block's width in the file."""
    if one.block is None:
        return shape
    width = layout.widths[one.block]
    if one.role in ("gate", "up"):
        return (width, *shape[1:])
    return (shape[0], width) if one.role == "down" and len(shape) == 2 else shape


def _order(held: DenseTensors, layout: Layout, one: _Tensor) -> Tensor | None:
    """Return which row of the stock class's tensor comes where in the file."""
    rows = held.shape(one.name)[-1 if one.kind == "bias" else 0]
    if layout.turned and one.role in ("q", "k"):
        halves = torch.arange(rows).view(-1, 2, head_dim(held.stock.config) // 2)
        return halves.transpose(1, 2).flatten()
    if one.role == "qkv" and held.architecture.fused is not None:
        groups = held.architecture.fused(held.stock.config)
        rows = max(held.shape(one.name)) if one.kind == "weight" else rows
        return torch.cat(FusedLayout(*groups).parted(torch.arange(rows)))
    return None


def _experts(held: DenseTensors, one: _Tensor) -> Iterator[Stored]:
    """Yield the maps of all experts of a block, gate and up apart."""
    kinds = EXPERTS[one.kind]
    experts, rows, columns = held.shape(one.name)
    shape = (experts, rows // len(kinds), columns)
    modules = _module(held, one).modules()
    rounded = any(isinstance(one, FactoredLinear) and one.rounded for one in modules)

    def part(at: int) -> Callable[[], Tensor]:
        return lambda: held.tensor(one.name, torch.float32).chunk(len(kinds), dim=1)[at].float()

    for at, kind in enumerate(kinds):
        name = TENSOR_NAMES[kind].format(bid=one.block) + ".weight"
        yield Stored(name, shape, part(at), rounded=rounded)


def _rope_factors(held: DenseTensors) -> list[Stored]:
    """Return by what the speed of each pair's turning is divided, as long-context Llamas do."""
    rope = rope_of(held.stock.config)
    if rope.get("rope_type") != "llama3":
        return []
    dim = head_dim(held.stock.config)
    plain = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
    turning: Any = held.model.get_submodule("model.rotary_emb")
    factors = (plain / turning.inv_freq.double()).float()
    return [Stored("rope_freqs.weight", (dim // 2,), lambda: factors)]
