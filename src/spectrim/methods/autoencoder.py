"""A non-linear bottleneck at a site, trained on its inputs to lose as little as it can.

It starts from the best linear bottleneck, the loss-aware SVD, and learns whether bending the
hidden units (PReLU) helps: min ½ E‖G^½ (W x - D σ(E x + o))‖², by Adam on sampled inputs, judged on
others. Little comes of it: all outputs lie in the span of D, and no map into so many dimensions
beats their principal subspace (Bourlard and Kamp, 1988), which the linear one has. What is left to
gain is where the inputs differ from their moments. The judge also chooses whether training is kept,
so a small optimism stays in the losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spectrim.methods import Decomposition
from spectrim.methods.loss_aware_svd import loss_aware_svd
from spectrim.walk.moments import Damping, cholesky, damped
from spectrim.walk.statistics import Statistics

FORMAT = "autoencoder"
SAMPLES = 3  # sequences of the calibration text, of which the last judges
CENTRED = False  # the samples are not, and an offset is learnt
PARTS_OF_BREAK_EVEN = (0.25, 0.5, 0.8)  # ranks, as parts of mn / (m + n)
STEPS, BATCH, RATE = 40, 128, 3e-3
FEWEST = 4 * BATCH  # inputs: fewer teach nothing and judge nothing


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
    the inputs held out; where it left more, the linear one is kept. A width that is no better than
    a smaller one is left out.

    Raises:
        ValueError: the statistics hold no moments or no sampled inputs.
    """
    if statistics.samples is None:
        raise ValueError("autoencoder needs sampled inputs")
    damping = damping or Damping()
    start = loss_aware_svd(weight, statistics, damping=damping)
    assert statistics.gradient_moment is not None
    root = cholesky(damped(statistics.gradient_moment, damping.gradient)).T.float()
    inputs = statistics.samples.float()
    outputs = inputs @ (root @ weight).T  # [tokens, out]
    made = {}
    for rank in _ranks(weight):
        left, right = start.factors(rank)
        first = _evened(Bottleneck(right, torch.zeros(rank), torch.ones(rank), root @ left))
        found, part = trained(first, inputs, outputs)
        decoder = torch.linalg.solve_triangular(root, found.decoder, upper=True)
        made[rank] = replace(found, decoder=decoder), float(start.losses[rank]) * part
    return _decomposition(made)


def _decomposition(made: dict[int, tuple[Bottleneck, float]]) -> Decomposition:
    """Return the decomposition of bottlenecks and their losses, by rank."""
    kept: dict[int, float] = {}
    pieces: dict[str, Tensor] = {}
    for rank, (found, loss) in made.items():
        if all(loss < smaller for smaller in kept.values()):
            kept[rank] = loss
            for name, tensor in vars(found).items():
                pieces[f"{rank}.{name}"] = tensor.contiguous()
    ranks, losses = torch.tensor(list(kept)), torch.tensor(list(kept.values()))
    return Decomposition(ranks, losses, pieces, in_nats=True)


def trained(
    start: Bottleneck,
    inputs: Float[Tensor, "tokens in"],
    outputs: Float[Tensor, "tokens out"],
    *,
    steps: int = STEPS,
    linear: bool = False,
) -> tuple[Bottleneck, float]:
    """Return the bottleneck after training towards ``outputs``, and what is left of its error.

    The part is measured on the last third of the inputs, which training does not see; 1 and the
    start where training did not help, or where the inputs are too few. linear: keep offsets at 0
    and slopes at 1.
    """
    if len(inputs) < FEWEST:
        return start, 1.0
    seen = len(inputs) * 2 // 3
    values = [tensor.clone().requires_grad_() for tensor in vars(start).values()]
    learnt = [values[0], values[3]] if linear else values
    optimiser = torch.optim.Adam([{"params": [v], "lr": RATE * _size(v)} for v in learnt])
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(seen, (BATCH,), generator=generator)
        error = Bottleneck(*values)(inputs[rows]) - outputs[rows]
        optimiser.zero_grad()
        error.square().sum(1).mean().backward()
        optimiser.step()
        schedule.step()
    found = Bottleneck(*(value.detach() for value in values))
    before, after = (_error(one, inputs[seen:], outputs[seen:]) for one in (start, found))
    return (found, after / before) if after < before else (start, 1.0)


def _error(
    bottleneck: Bottleneck,
    inputs: Float[Tensor, "tokens in"],
    outputs: Float[Tensor, "tokens out"],
) -> float:
    with torch.no_grad():
        return float((bottleneck(inputs) - outputs).square().sum(1).mean())


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
