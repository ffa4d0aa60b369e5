"""Plain matrices in the place of factored and packed maps: the same outputs, and faster."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.formats import FactoredLinear
from spectrim.model import sites
from spectrim.model.sites import weight


def matrix_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """Return the matrix that a dense or factored map stands for."""
    found = module.dense() if isinstance(module, FactoredLinear) else weight(module)
    return found.detach()


def dense_form(block: nn.Module) -> nn.Module:
    """Return a block with a matrix in the place of all that is factored or packed."""
    for name, module in list(block.named_modules()):
        if isinstance(module, FactoredLinear) and not module.follows and not module.leads:
            sites.replace(block, name, linear_of(module, None))
    return block


@torch.no_grad()
def linear_of(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return a plain linear map that computes what a map does; dtype: None, that of its matrix."""
    matrix = matrix_of(module)
    dtype = matrix.dtype if dtype is None else dtype
    bias = sites.bias(module)
    with torch.device("meta"):
        made = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None)
    made.weight = nn.Parameter(matrix.to(dtype), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return made
