"""Sites: finding, reading and replacing the linear maps of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spectrim.errors import SpectrimError
from spectrim.model.architectures import Architecture, Place, architecture_of
from spectrim.model.experts import maps, pack_experts, unpack_experts
from spectrim.model.fused import PARTS, Fused

__all__ = [
    "Site",
    "bias",
    "block_sites",
    "find",
    "module",
    "pack_experts",
    "replace",
    "shape",
    "tied",
    "unpack_experts",
    "weight",
]


@dataclass(frozen=True)
class Site:
    """One linear map of a model."""

    name: str
    """Dotted path."""
    block: int
    """Which block of its stack, from 0; -1 for the embedding and the head."""
    role: str
    """q k v o gate up down, qkv where fused and not split, cross_q, expert3_down, embed, head;
    after `encoder_` or `decoder_` where there are both."""
    out_features: int
    in_features: int
    head_dim: int = 0
    """How many outputs (q, k, v) or inputs (o) one head of attention has; 0 where there are no
    heads, and of q and k where something acts on single dimensions, as rotary embeddings do."""


def find(model: PreTrainedModel) -> list[Site]:
    """Return every site in the order of the forward pass; a head tied to the embedding is left out.

    Works without weights, on the meta device. The embedding counts as `[vocabulary, hidden]`, the
    orientation of the head that it may be tied to.
    """
    architecture = architecture_of(model.config)
    sites = [_end(model, architecture.embed, "embed")]
    for index, stack in enumerate(architecture.stacks):
        for block in range(len(list(model.get_submodule(stack.path).children()))):
            sites += block_sites(model, index, block)
    return sites if tied(model) else [*sites, _end(model, architecture.head, "head")]


def block_sites(model: PreTrainedModel, stack_index: int, block_index: int) -> list[Site]:
    """Return the sites of one block in the order of the forward pass."""
    architecture = architecture_of(model.config)
    stack = architecture.stacks[stack_index]
    name = Place(stack, block_index).name
    found = list(_linear_maps(model.get_submodule(name), architecture))
    widths = [shape(linear)[1] for _, role, linear in found if role == "o"]
    head_dim = widths[0] // int(getattr(model.config, stack.heads)) if widths else 0
    turned = "vo" if architecture.rotary(model.config) else "qkvo"
    return [
        Site(
            f"{name}.{path}", block_index, stack.prefix + role, *shape(linear),
            head_dim * (role.removeprefix("cross_") in list(turned)),
        )
        for path, role, linear in found
    ]  # fmt: skip


def tied(model: PreTrainedModel) -> bool:
    """Return whether the head uses the very parameter of the embedding."""
    architecture = architecture_of(model.config)
    embed: Any = model.get_submodule(architecture.embed)
    head: Any = model.get_submodule(architecture.head)
    return hasattr(embed, "weight") and embed.weight is getattr(head, "weight", None)


def module(model: nn.Module, site: Site) -> nn.Module:
    """Return the module that a site names.

    Raises SpectrimError if there is none, as for an expert that is still packed with the others.
    """
    try:
        return model.get_submodule(site.name)
    except AttributeError:
        raise SpectrimError(
            f"no module '{site.name}' in this model; the maps of packed experts are modules only "
            "after unpack_experts"
        ) from None


def shape(module: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a linear map, dense or factored, or of an embedding table.

    Raises SpectrimError if the module is none of these.
    """
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    sizes: Any = module
    if not hasattr(module, "out_features"):
        raise SpectrimError(f"{type(module).__name__} is no linear map; expected nn.Linear, Conv1D")
    return sizes.out_features, sizes.in_features


def weight(module: nn.Module) -> Float[Tensor, "out in"]:
    """Return the matrix of a dense map: the parameter itself, or a transposed view of Conv1D's.

    Raises SpectrimError if the module does not hold one dense matrix.
    """
    if isinstance(module, Conv1D):
        return module.weight.T
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise SpectrimError(f"{type(module).__name__} has no dense matrix; expected nn.Linear")
    return module.weight


def bias(module: nn.Module) -> Float[Tensor, " out"] | None:
    """Return the bias of a linear map, None where it has none."""
    found = getattr(module, "bias", None)
    return found if isinstance(found, Tensor) else None


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of the one with this dotted name.

    Raises SpectrimError if there is no module of this name.
    """
    try:
        model.set_submodule(name, new, strict=True)
    except (AttributeError, ValueError):
        raise SpectrimError(f"no module '{name}' in this model; nothing was replaced") from None


def _end(model: nn.Module, path: str, role: str) -> Site:
    return Site(path, -1, role, *shape(model.get_submodule(path)))


def _linear_maps(
    block: nn.Module, architecture: Architecture
) -> Iterator[tuple[str, str, nn.Module]]:
    modules = dict(block.named_modules(remove_duplicate=False))
    for path, role in architecture.roles.items():
        found = modules.get(path)
        if isinstance(found, Fused):
            for part in PARTS:
                yield f"{path}.{part}", part, found.get_submodule(part)
        elif found is not None:
            yield path, role, found
    experts = architecture.experts
    if experts is not None and experts in modules:
        for index, part, linear in maps(modules[experts]):
            yield f"{experts}.{index}.{part}", f"expert{index}_{part}", linear


def protected(site: Site, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern is found in the site's name, its role or its "block N"."""
    texts = (site.name, site.role, f"block {site.block}")
    return any(re.search(pattern, text) for pattern in patterns for text in texts)
