"""Draws of the gradient at the logits, whose second moment is the Fisher information."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def drawn(
    logits: Float[Tensor, "tokens vocab"], generator: torch.Generator
) -> Float[Tensor, "tokens vocab"]:
    """Return one draw a token with mean zero and the covariance diag(p) - p pᵀ, in float32.

    p is the softmax of the logits. The gradient of the cross-entropy has that covariance where
    labels are drawn from the model. √p z - p (√p · z) with normal z has it as well, without the
    heavy tails of rare labels, so that moments of few tokens are not owned by a few of them.
    """
    likely = logits.float().softmax(-1)
    root = likely.sqrt()
    free = root * torch.randn(root.shape, generator=generator)
    return free - likely * free.sum(-1, keepdim=True)
