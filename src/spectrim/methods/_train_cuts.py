"""What the methods that leave tensor trains share: which bonds they offer, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.formats._trains import largest
from spectrim.methods import Decomposition
from spectrim.walk.moments import Damping, cholesky, damped
from spectrim.walk.statistics import Statistics


@dataclass(frozen=True)
class Metric:
    """The damage ½ ‖Lᵀ Δ S‖² of an error Δ, with A = S Sᵀ and G = L Lᵀ, both damped.

    In float32, which a sum of squares of products with roots bears: nothing cancels in it.
    ``blind``: nothing that this map does reaches the loss.
    """

    input_root: Float[Tensor, "in in"]
    gradient_root: Float[Tensor, "out out"]
    blind: bool

    @classmethod
    def of(cls, statistics: Statistics, damping: Damping) -> Metric:
        """Return the metric of a map; ValueError where a moment is missing."""
        inputs, gradients = statistics.loss_inputs, statistics.gradient_moment
        if inputs is None or gradients is None:
            raise ValueError("a tensor train needs the input moment and the gradient moment")
        return cls(
            cholesky(damped(inputs, damping.input)).float(),
            cholesky(damped(gradients, damping.gradient)).float(),
            not inputs.any() or not gradients.any(),
        )

    def damage(self, error: Float[Tensor, "out in"]) -> float:
        """Return the predicted increase of the loss by W -> W - error, in nats per token."""
        if self.blind:
            return 0.0
        weighted = self.gradient_root.T @ error.float() @ self.input_root
        return 0.5 * float(torch.linalg.vector_norm(weighted, dtype=torch.float64) ** 2)


def offered_bonds(shape: tuple[int, int], many: int) -> list[int]:
    """Return so many bond dimensions (all, if fewer), evenly spaced up to the last that saves."""
    last = largest(*shape)
    steps = torch.linspace(0, last, min(many, last) + 1, dtype=torch.float64)
    return [int(step) for step in steps[1:].round()]


def train_decomposition(
    ranks: list[int], losses: list[float], trains: dict[int, list[Tensor]]
) -> Decomposition:
    """Return the decomposition of trains by bond dimension; ranks and losses are those of cuts.

    A cut that is no better than a smaller one is left out.
    """
    kept = [at for at in range(len(ranks)) if all(losses[at] < smaller for smaller in losses[:at])]
    pieces = {
        f"{rank}.{at}": core.contiguous()
        for rank, cores in trains.items()
        for at, core in enumerate(cores)
    }
    return Decomposition(
        torch.tensor([ranks[at] for at in kept]),
        torch.tensor([losses[at] for at in kept]),
        pieces,
        in_nats=True,
    )
