"""Experts of a mixture as modules of their own, in the place of transformers' packed tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectrim.errors import SpectrimError

PARTS = ("gate_up", "down")


class Expert(nn.Module):
    """One gated feed-forward expert: two linear maps, the first giving gate and up at once."""

    def __init__(self, gate_up: nn.Module, down: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self.activation = activation

    def forward(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        """Return the expert's output for its own tokens."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # [tokens, inner] each
        out: Tensor = self.down(self.activation(gate) * up)
        return out


class Experts(nn.ModuleList):
    """All experts of a block; takes the packed ones' weights as views and leaves them empty.

    Gives bit for bit what transformers' `eager` packed experts give: experts in the same order,
    and within each expert the tokens in the same order.
    """

    def __init__(self, packed: nn.Module) -> None:
        super().__init__(_unpacked(packed))
        # The emptied original keeps class and settings for `pack`; its tensors would else stay in
        # memory when an expert is replaced. In a tuple, it is no child.
        self._original = (_emptied(packed),)
        self.train(packed.training)

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens top"],
        top_k_weights: Float[Tensor, "tokens top"],
    ) -> Float[Tensor, "tokens hidden"]:
        """Return the weighted sum of the chosen experts' outputs."""
        output = torch.zeros_like(hidden_states)
        chosen = top_k_index.T  # [top, tokens]: the packed forward goes by choice, then by token
        expert: Any
        for index, expert in enumerate(self):
            choice, token = torch.where(chosen == index)
            if token.numel():
                # Tells who watches the maps which tokens came here, padding among them or not.
                expert.gate_up.token_index = expert.down.token_index = token
                part = expert(hidden_states[token]) * top_k_weights[token, choice, None]
                output.index_add_(0, token, part.to(output.dtype))
        return output

    def pack(self) -> nn.Module:
        """Return the packed module with a copy of the weights as they are now.

        Raises SpectrimError if a map is not dense any more.
        """
        original = self._original[0]
        for part in PARTS:
            setattr(original, f"{part}_proj", _stack([getattr(e, part) for e in self], part))
        return original.train(self.training)


def unpack_experts(parent: nn.Module, path: str) -> None:
    """Replace the packed experts at `path` by `Experts`; no weight is copied.

    Nothing happens where the path does not exist, as in the dense blocks of some mixtures, or
    where the experts are unpacked already.
    """
    packed = _at(parent, path)
    if packed is not None and not isinstance(packed, Experts):
        parent.set_submodule(path, Experts(packed))


def pack_experts(parent: nn.Module, path: str) -> None:
    """Undo `unpack_experts`, copying the weights back into one tensor per part.

    Raises SpectrimError if a map is not dense any more.
    """
    experts = _at(parent, path)
    if isinstance(experts, Experts):
        parent.set_submodule(path, experts.pack())


def load_block(
    empty: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype, experts: str | None
) -> nn.Module:
    """Return a frozen copy of an empty block holding these tensors, floating ones in ``dtype``."""
    block = copy.deepcopy(empty)
    cast = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    block.load_state_dict(cast, assign=True)
    if experts is not None:
        unpack_experts(block, experts)
    return block.eval().requires_grad_(False)


def maps(experts: nn.Module) -> list[tuple[int, str, nn.Module]]:
    """Return (expert, part, linear map) of every expert, packed or not, in forward order.

    Of packed experts the maps are read-only stand-ins: replacing one changes nothing.
    """
    each: Any = experts if isinstance(experts, Experts) else _unpacked(experts)
    return [(i, part, getattr(expert, part)) for i, expert in enumerate(each) for part in PARTS]


def _at(parent: nn.Module, path: str) -> nn.Module | None:
    return dict(parent.named_modules()).get(path)


def _unpacked(packed: Any) -> Iterator[Expert]:
    for gate_up, down in zip(packed.gate_up_proj, packed.down_proj, strict=True):
        yield Expert(_linear(gate_up), _linear(down), packed.act_fn)


def _linear(matrix: Float[Tensor, "out in"]) -> nn.Linear:
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(matrix.detach(), requires_grad=matrix.requires_grad)
    return linear


def _emptied(packed: nn.Module) -> nn.Module:
    for name, parameter in list(packed.named_parameters(recurse=False)):
        setattr(packed, name, nn.Parameter(parameter.to("meta"), parameter.requires_grad))
    return packed


def _stack(linears: Sequence[nn.Module], part: str) -> nn.Parameter:
    weights: list[Tensor] = []
    for index, linear in enumerate(linears):
        if not isinstance(linear, nn.Linear):
            kind = type(linear).__name__
            raise SpectrimError(f"expert {index} {part} is {kind}; only nn.Linear can be packed")
        weights.append(linear.weight)
    stacked = torch.stack([weight.detach() for weight in weights])  # [expert, out, in]
    return nn.Parameter(stacked, requires_grad=any(weight.requires_grad for weight in weights))
