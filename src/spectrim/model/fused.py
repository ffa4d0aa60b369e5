"""A map that computes queries, keys and values at once, as three maps in its place."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from spectrim.model.architectures import Place, architecture_of

PARTS = ("q", "k", "v")
ROLE = "qkv"


@dataclass(frozen=True)
class Layout:
    """Where the rows of q, k and v lie: in ``groups``, each of q, then k, then v.

    queries: how many times as many rows a group has of q as of k, and of v.
    """

    groups: int
    queries: int

    def parted(self, rows: Float[Tensor, out * rest]) -> list[Float[Tensor, _ * rest]]:
        """Return the rows of q, k and v, contiguous, each in the order that its heads have."""
        grouped = rows.unflatten(0, (self.groups, -1))
        one = grouped.shape[1] // (self.queries + 2)
        parts = grouped.split((self.queries * one, one, one), dim=1)
        return [part.flatten(0, 1).contiguous() for part in parts]

    def joined(self, parts: Iterable[Shaped[Tensor, "*batch _"]]) -> Shaped[Tensor, "*batch out"]:
        """Return q, k and v, given by their last dimension, in the order of the fused map."""
        if self.groups == 1:
            return torch.cat(list(parts), -1)
        return torch.cat([part.unflatten(-1, (self.groups, -1)) for part in parts], -1).flatten(-2)


class Fused(nn.Module):
    """Three maps with one input in the place of the one that computed all three.

    It loads what a checkpoint holds of the one map as well as what it holds of the three.
    """

    q: nn.Module
    k: nn.Module
    v: nn.Module

    def __init__(self, whole: Any, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self._turned = not isinstance(whole, nn.Linear)  # transformers' Conv1D holds [in, out]
        matrix = whole.weight.T if self._turned else whole.weight
        weights = layout.parted(matrix.detach())
        biases = [None] * 3 if whole.bias is None else layout.parted(whole.bias.detach())
        for name, rows, bias in zip(PARTS, weights, biases, strict=True):
            setattr(self, name, _linear(rows, bias).requires_grad_(whole.weight.requires_grad))
        # Its class and settings are for `merged`; its tensors would else stay in memory. In a
        # tuple, it is no child.
        self._original = (_emptied(whole),)
        self.train(whole.training)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return what the one map would."""
        return self.layout.joined((self.q(x), self.k(x), self.v(x)))

    @property
    def weight(self) -> Tensor:
        """Return a parameter: Falcon asks for ``weight.dtype``."""
        return next(self.parameters())

    def merged(self) -> nn.Module | None:
        """Return the one map again, its weights copied; None where a part is not dense any more."""
        parts = [part for part in (self.q, self.k, self.v) if isinstance(part, nn.Linear)]
        if len(parts) < len(PARTS):
            return None
        original: Any = self._original[0]
        matrix = self.layout.joined([part.weight.detach().T for part in parts])  # [in, out]
        matrix = matrix if self._turned else matrix.T
        needed = parts[0].weight.requires_grad
        original.weight = nn.Parameter(matrix.contiguous(), needed)
        if original.bias is not None:
            bias = self.layout.joined([part.bias.detach() for part in parts])
            original.bias = nn.Parameter(bias, needed)
        merged: nn.Module = original.train(self.training)
        return merged

    def _load_from_state_dict(self, held: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Part what the checkpoint holds of the one map; the three take it from there."""
        for kind in ("weight", "bias"):
            whole = held.pop(f"{prefix}{kind}", None)
            if whole is not None:
                turned = self._turned and kind == "weight"
                for name, rows in zip(PARTS, self.layout.parted(whole.T if turned else whole),
                                      strict=True):  # fmt: skip
                    held[f"{prefix}{name}.{kind}"] = rows
        super()._load_from_state_dict(held, prefix, *rest)


def fused_maps(model: nn.Module) -> list[str]:
    """Return the dotted paths of the maps of a model that compute q, k and v at once."""
    architecture = architecture_of(model.config)
    if architecture.fused is None:
        return []
    paths = [path for path, role in architecture.roles.items() if role == ROLE]
    return [
        Place(stack, index).prefix + path
        for stack in architecture.stacks
        for index, block in enumerate(model.get_submodule(stack.path).children())
        for path in paths
        if path in dict(block.named_modules())
    ]


def split_fused(model: nn.Module, sites: Iterable[str] | None = None) -> None:
    """Replace fused maps by `Fused`; where they are that already, nothing happens.

    sites: only maps of which a part is among these sites; None for all.
    """
    named = None if sites is None else {site.rpartition(".")[0] for site in sites}
    architecture = architecture_of(model.config)
    for path in fused_maps(model):
        whole: Any = model.get_submodule(path)
        if (named is None or path in named) and not isinstance(whole, Fused):
            assert architecture.fused is not None
            model.set_submodule(path, Fused(whole, Layout(*architecture.fused(model.config))))


def whole_of(model: nn.Module, site: str) -> str | None:
    """Return the path of the split map that a site is a part of, None where it is of none."""
    path = site.rpartition(".")[0]
    with suppress(AttributeError):  # experts are no modules while they are packed
        return path if isinstance(model.get_submodule(path), Fused) else None
    return None


def merge_fused(block: nn.Module) -> None:
    """Undo `split_fused` in a block wherever q, k and v are all dense."""
    for path, module in list(block.named_modules()):
        if isinstance(module, Fused) and (whole := module.merged()) is not None:
            block.set_submodule(path, whole)


def _linear(rows: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> nn.Linear:
    linear = nn.Linear(rows.shape[1], rows.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(rows)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def _emptied(whole: nn.Module) -> nn.Module:
    for name, parameter in list(whole.named_parameters()):
        setattr(whole, name, nn.Parameter(parameter.to("meta"), parameter.requires_grad))
    return whole
