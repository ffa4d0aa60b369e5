"""Packed matrices whose codes are learnt: dense once a pass, so that a step costs its products.

Rounding has no gradient, so that of the rounded matrix is passed on to what was rounded
(straight-through, 1308.3432), as in SignRound (2309.05516). Codes begin as GPTQ chose them, each at
that end of what rounds to it which is nearer to the weight: those that GPTQ moved away from it, to
make up for others, are the first to move back.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.healing.dequantized import Dequantized, in_groups, pass_dtype
from spectrim.healing.learned_codes import LearnedMatrix, learn
from spectrim.model.sites import weight

LEAN = 0.49  # of a code: what rounds to it
SOLVED = ("second", "coefficients")  # for what the other factor delivers in its few bits


class RoundedMatrix(LearnedMatrix):
    """A packed matrix with learnt codes, of which a dense copy is held in each pass."""

    latent: nn.Parameter

    def __init__(self, held: PackedMatrix, wanted: Tensor | None = None) -> None:
        """Begin with the codes of a matrix, each as near to what is wanted as rounds to it.

        wanted: [rows, columns], what was rounded; None begins with whole codes.
        """
        super().__init__(held, codes=True)
        if wanted is None:
            return
        groups = held.grid.groups(held.columns)
        scale, offset = held.scales().detach().float(), held.offsets()
        left = in_groups(wanted.detach().float(), groups, held.grid)
        if offset is not None:
            left = left - offset.detach().float()[..., None]
        exact = left / torch.where(scale > 0, scale, 1.0)[..., None]
        codes = self.latent.data
        near = exact.flatten(1)[:, : held.columns].clamp(codes - LEAN, codes + LEAN)
        self.latent.data = near.to(codes.dtype)

    def product(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Return x Wᵀ; gradients reach codes, scales and offsets."""
        with torch.no_grad():  # clamped in the graph, what is outside would never come back
            self.latent.clamp_(*self.grid.codes)
        whole: Tensor = Dequantized.apply(  # type: ignore[no-untyped-call]
            self.latent, self.scales(), self.offsets(), self.grid, pass_dtype(x)
        )
        return functional.linear(x, whole)


def learn_rounding(block: nn.Module, before: nn.Module | None = None) -> nn.Module:
    """Let codes, scales and offsets of every packed matrix in a block be trained, and return it.

    before: the block as it was before it was rounded, where that is known.
    """
    for name, module in list(block.named_modules()):
        if type(module) is PackedMatrix:
            made = (
                LearnedMatrix(module, codes=False)  # signs stay, and their scales are trained
                if module.grid.bits == 1
                else RoundedMatrix(module, None if before is None else _rounded_from(before, name))
            )
            block.set_submodule(name, made.train(module.training))
    return learn(block)  # paths, of which the scales are trained


def _rounded_from(before: nn.Module, name: str) -> Tensor | None:
    """Return the matrix that was rounded; None for a factor that was solved for anew."""
    path, _, part = name.rpartition(".")
    module = before.get_submodule(path)
    if part == "quantized":
        return weight(module)
    found = None if part in SOLVED else getattr(module, part, None)
    return found if isinstance(found, Tensor) else None
