"""A copy of a model with noise on the weights of its blocks."""

from __future__ import annotations

import copy
from typing import Any

import torch


def with_noise(model: Any, part: float) -> Any:
    """Return a copy whose block matrices got noise of ``part`` of their standard deviation."""
    noisy = copy.deepcopy(model)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in noisy.named_parameters():
            if ".layers." in name and weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=drawn) * weight.float().std()
                weight.add_((part * noise).to(weight.dtype))
    return noisy
