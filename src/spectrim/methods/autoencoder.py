"""A non-linear bottleneck at a site, trained on its inputs to lose as little as it can.

It starts from the best linear bottleneck, the loss-aware SVD, and learns whether bending the
hidden units (PReLU) helps: min ½ E‖G^½ (W x - D σ(E x + o))‖², by Adam on sampled inputs, judged on
others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spectrim.methods import Damping, Decomposition, cholesky, damped
from spectrim.methods.loss_aware_svd import loss_aware_svd
from spectrim.statistics import Statistics

FORMAT = "autoencoder"
SAMPLES = 2  # sequences of the calibration text whose inputs it is trained on
PARTS_OF_BREAK_EVEN = (0.25, 0.5, 0.75, 0.95)  # ranks, as parts of mn / (m + n)
STEPS, BATCH, RATE = 60, 256, 3e-3
HELD_OUT = 4  # one in so many inputs judges what the others have taught


@dataclass(frozen=True)
class Bottleneck:
    """Encoder [rank, in], offset and slope [rank], and decoder [out, rank] of one autoencoder."""

    encoder: Tensor
    offset: Tensor
    slope: Tensor
    decoder: Tensor

    def __call__(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        """Return the decoded outputs."""
        hidden = functional.linear(x, self.encoder, self.offset)
        return functional.linear(functional.prelu(hidden, self.slope), self.decoder)


def autoencoder(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return bottlenecks of a few widths, each trained; losses as measured on inputs held out.

    The loss of a width is that of the linear bottleneck, times what training left of its error on
    the inputs held out; where it left more, the linear one is kept.

    Raises:
        ValueError: the statistics hold no moments or no sampled inputs.
    """
    if statistics.samples is None:
        raise ValueError("autoencoder needs sampled inputs")
    damping = damping or Damping()
    start = loss_aware_svd(weight, statistics, damping=damping)
    assert statistics.gradient_moment is not None
    root = cholesky(damped(statistics.gradient_moment, damping.gradient)).T.float()
    pieces: dict[str, Tensor] = {}
    losses = []
    for rank in _ranks(weight):
        left, right = start.factors(rank)
        first = _evened(Bottleneck(right, torch.zeros(rank), torch.ones(rank), root @ left))
        found, part = trained(first, statistics.samples.float(), root @ weight)
        decoder = torch.linalg.solve_triangular(root, found.decoder, upper=True)
        for name, tensor in vars(replace(found, decoder=decoder)).items():
            pieces[f"{rank}.{name}"] = tensor.contiguous()
        losses.append(float(start.losses[rank]) * part)
    return Decomposition(
        torch.tensor(_ranks(weight)),
        torch.tensor(losses).cummin(0).values,  # a wider one can hold any narrower one
        pieces,
        in_nats=True,
    )


def trained(
    start: Bottleneck,
    inputs: Float[Tensor, "tokens in"],
    target: Float[Tensor, "out in"],
    *,
    steps: int = STEPS,
    linear: bool = False,
) -> tuple[Bottleneck, float]:
    """Return the bottleneck after training towards ``target @ x``, and what is left of its error.

    The part is measured on every fourth input, which training does not see; 1 and the start where
    training did not help. linear: keep offsets at 0 and slopes at 1.
    """
    judged = torch.arange(len(inputs)) % HELD_OUT == 0
    seen, unseen = inputs[~judged], inputs[judged]
    values = [tensor.clone().requires_grad_() for tensor in vars(start).values()]
    learnt = [values[0], values[3]] if linear else values
    optimiser = torch.optim.Adam([{"params": [v], "lr": RATE * _size(v)} for v in learnt])
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = seen[torch.randint(len(seen), (BATCH,), generator=generator)]
        error = Bottleneck(*values)(rows) - rows @ target.T
        optimiser.zero_grad()
        error.square().sum(1).mean().backward()
        optimiser.step()
        schedule.step()
    found = Bottleneck(*(value.detach() for value in values))
    before, after = (_error(one, unseen, target) for one in (start, found))
    return (found, after / before) if after < before else (start, 1.0)


def _error(
    bottleneck: Bottleneck, inputs: Float[Tensor, "tokens in"], target: Float[Tensor, "out in"]
) -> float:
    with torch.no_grad():
        return float((bottleneck(inputs) - inputs @ target.T).square().sum(1).mean())


def _evened(start: Bottleneck) -> Bottleneck:
    """Return the same map with rows of the encoder and columns of the decoder alike in size."""
    scale = (start.decoder.norm(dim=0) / start.encoder.norm(dim=1).clamp_min(1e-12)).sqrt()
    scale = scale.clamp_min(1e-12)
    return replace(start, encoder=start.encoder * scale[:, None], decoder=start.decoder / scale)


def _size(value: Tensor) -> float:
    """Return how large the entries are, so that one rate fits all: Adam's steps have its size."""
    return max(float(value.detach().square().mean().sqrt()), 0.1 if value.dim() == 1 else 1e-6)


def _ranks(weight: Tensor) -> list[int]:
    out, inner = weight.shape
    even = out * inner / (out + inner + 2)
    return sorted({max(1, int(part * even)) for part in PARTS_OF_BREAK_EVEN})
