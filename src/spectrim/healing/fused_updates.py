"""Updates inside the backward pass: each gradient is used and let go as soon as it is there.

LOMO (2306.09782) is p ← p - η ∂ℓ/∂p in a hook behind the gradient's accumulation, so that no two
gradients and no moments are held. AdaLomo (2310.10195) divides by factored second moments first:
one number a row and one a column of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

DECAY = 0.99  # of the second moments
TINY = 1e-12
LIMIT = 1.0  # root mean square of an AdaLomo update; norm of a LOMO gradient


class Lomo:
    """Plain descent in the hook; a gradient longer than ``LIMIT`` is shortened to it."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.rate = 0.0
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))
            for name, parameter in parameters.items()
        ]

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def update(parameter: Tensor) -> None:
            assert parameter.grad is not None
            parameter.sub_(self.rate * self.direction(name, parameter.grad.float()))
            parameter.grad = None

        return update

    def direction(self, name: str, gradient: Tensor) -> Tensor:
        """Return what is subtracted, up to the learning rate."""
        shortened: Tensor = gradient * (LIMIT / gradient.norm().clamp_min(LIMIT))
        return shortened

    def begin(self, rate: float) -> None:
        """Set the learning rate that the hooks take."""
        self.rate = rate

    def end(self) -> None:
        """Do nothing: the backward pass has done it."""

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: plain descent remembers nothing."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up nothing."""

    def numbers(self) -> int:
        """Return how many numbers are held beside parameters and the largest gradient."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()


class AdaLomo(Lomo):
    """Divided by the root of a second moment that is held as means of rows and of columns.

    The update is scaled to the parameter's own root mean square, as in 2310.10195.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__(parameters)
        self.moments: dict[str, Tensor] = {}

    def direction(self, name: str, gradient: Tensor) -> Tensor:
        """Return the gradient over its root mean square, with the size of the parameter."""
        square = gradient.square() + TINY
        if gradient.dim() == 2:
            rows = self._mean(f"{name} rows", square.mean(1))
            columns = self._mean(f"{name} columns", square.mean(0))
            second = torch.outer(rows, columns) / rows.mean()
        else:
            second = self._mean(f"{name} all", square)
        update = gradient / second.sqrt()
        size = self.parameters[name].detach().square().mean().sqrt().clamp_min(1e-3)
        scaled: Tensor = update * size / (update.square().mean().sqrt() / LIMIT).clamp_min(1.0)
        return scaled

    def _mean(self, key: str, found: Tensor) -> Tensor:
        """Return the running mean with what was found, the first time just that."""
        known = self.moments.get(key)
        self.moments[key] = found if known is None else DECAY * known + (1 - DECAY) * found
        return self.moments[key]

    def tensors(self) -> dict[str, Tensor]:
        """Return the second moments."""
        return dict(self.moments)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up second moments."""
        device = next(iter(self.parameters.values())).device
        self.moments = {key: tensor.to(device) for key, tensor in tensors.items()}
