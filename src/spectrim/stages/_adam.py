"""AdamW in the shape that training wants: one step from the gradients, all of its state by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.stages._matching import BETAS

CLIPPED = 1.0  # norm of all gradients together


class Adam:
    """AdamW without decay, gradients clipped."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.optimiser = torch.optim.AdamW(
            parameters.values(), betas=BETAS, weight_decay=0.0, fused=True
        )

    def begin(self, rate: float) -> None:
        """Forget the gradients of the step before."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()

    def end(self) -> None:
        """Change the parameters by their gradients."""
        nn.utils.clip_grad_norm_(self.parameters.values(), CLIPPED)
        self.optimiser.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments and the count of steps of every parameter that had a gradient."""
        return {
            f"{name} {key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimiser.state.get(parameter, {}).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up moments and counts."""
        for key, value in tensors.items():
            name, _, part = key.rpartition(" ")
            parameter = self.parameters[name]
            self.optimiser.state[parameter][part] = value.to(parameter.device)
