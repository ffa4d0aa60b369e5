"""AdamW in the shape that training wants: one step from the gradients, all of its state by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.healing.learned_codes import LATENT, PACE

BETAS = (0.9, 0.95)  # of Adam; the second below the usual 0.999, because there are few steps
MAX_NORM = 1.0  # norm of all gradients together
MIN_SIZE = 1e-2  # of the size of a vector, so that zeros move too


class Adam:
    """AdamW without decay, gradients clipped.

    relative: the rate is a part of each parameter's size, its root mean square when training begins
        (Adafactor, 1804.04235, takes the present one), so that norms and factors move alike.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], *, relative: bool = False) -> None:
        self.parameters = parameters
        self.sizes = [size_of(name, one) if relative else 1.0 for name, one in parameters.items()]
        self.optimiser = torch.optim.AdamW(
            [{"params": [one]} for one in parameters.values()],
            betas=BETAS, weight_decay=0.0, fused=True,
        )  # fmt: skip

    def begin(self, rate: float) -> None:
        """Forget the gradients of the step before."""
        for group, size in zip(self.optimiser.param_groups, self.sizes, strict=True):
            group["lr"] = rate * size
        self.optimiser.zero_grad()

    def end(self) -> None:
        """Change the parameters by their gradients."""
        nn.utils.clip_grad_norm_(self.parameters.values(), MAX_NORM)
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


@torch.no_grad()
def size_of(name: str, parameter: nn.Parameter) -> float:
    """Return what a rate is a part of: of learnt codes one code, so that all bits flip alike."""
    if name.endswith(f".{LATENT}"):
        return PACE
    size = float(parameter.float().square().mean().sqrt())
    return size if size > 0 and parameter.dim() > 1 else max(MIN_SIZE, size)
