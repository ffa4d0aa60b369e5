"""Training a few blocks in a row to give given hidden states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.healing.adam import BETAS, size_of
from spectrim.healing.judging import mixed_precision
from spectrim.healing.learned_codes import OF_GROUPS
from spectrim.model.architectures import Place
from spectrim.walk.stream import States, Stream

CHECKED = 8  # batches on which the error is measured before and after training
WARMUP = 0.05  # of all steps
MAX_RATE = 1e-2  # of their size, for scales and offsets of codes: some are very small
SCALES = (*OF_GROUPS, "row_scale", "column_scale")


@dataclass(frozen=True)
class Window:
    """Blocks in a row and what comes in in front of them."""

    places: list[Place]
    blocks: list[nn.Module]
    stream: Stream

    def run(self, at: int) -> Tensor:
        """Return the hidden states of one batch behind the last block."""
        hidden, encoded = self.stream.hidden[at], self.stream.encoded.get(at)
        for block, place in zip(self.blocks, self.places, strict=True):
            hidden = self.stream.walk.run(block, place, at, hidden, encoded)
        return hidden


@dataclass(frozen=True)
class Goal:
    """What is wanted of a window.

    inputs: windows of the same blocks, taken in turn. measured: the one on which the error is
    compared with what it was. target: hidden states behind the dense blocks. metric: weights of
    errors, [hidden, hidden]; None weighs all dimensions alike. alike: every token counts alike,
    however large its states are: a norm behind the block divides by that.
    """

    inputs: list[Window]
    measured: Window
    target: States
    metric: Tensor | None = None
    alike: bool = False

    def error(self, window: Window, at: int) -> Tensor:
        """Return tr(Eᵀ G E) over the tokens of a batch that are text, as a part of tr(Yᵀ G Y)."""
        mask = window.stream.walk.stack_mask(window.places[0].stack, at)
        wanted = self.target[at][mask].float()  # [tokens, hidden]
        missed = window.run(at)[mask].float() - wanted
        if self.alike:
            size = wanted.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt()
            missed, wanted = missed * size, wanted * size
        return self._size(missed) / self._size(wanted).clamp_min(1e-12)

    def _size(self, rows: Tensor) -> Tensor:
        weighed = rows if self.metric is None else rows @ self.metric
        return (weighed * rows).sum()


def rate(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of a step as a part of the highest: a rise, then half a cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def match(
    parameters: dict[str, nn.Parameter], goal: Goal, steps: int, learning_rate: float
) -> bool:
    """Train the parameters; return whether the error has become less.

    They get their values back where it has not. An error that is no number ends the training.
    learning_rate: the highest.
    """
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    error = _mean_error(goal)
    if parameters and error > 0:
        _train(parameters, goal, steps, learning_rate)
    if _mean_error(goal) < error:
        return True
    for name, parameter in parameters.items():
        parameter.data.copy_(before[name])
    return False


def _train(
    parameters: dict[str, nn.Parameter], goal: Goal, steps: int, learning_rate: float
) -> None:
    walk = goal.measured.stream.walk
    optimiser = torch.optim.Adam(
        [{"params": [one]} for one in parameters.values()], betas=BETAS, fused=True
    )
    highest = highest_rates(parameters, learning_rate)
    starts, warmup = list(walk.starts), round(WARMUP * steps)
    for step in range(steps):
        for group, its_highest in zip(optimiser.param_groups, highest, strict=True):
            group["lr"] = its_highest * rate(step, steps, warmup)
        turn, at = step % len(goal.inputs), starts[step // len(goal.inputs) % len(starts)]
        with torch.enable_grad(), mixed_precision(walk.dtype):
            error = goal.error(goal.inputs[turn], at)
        if not error.isfinite():
            return
        optimiser.zero_grad()
        error.backward()
        optimiser.step()


def highest_rates(parameters: dict[str, nn.Parameter], asked: float) -> list[float]:
    """Return the highest learning rate of each parameter: what is asked, less for small scales."""
    return [
        min(asked, MAX_RATE * size_of(name, one)) if name.rpartition(".")[2] in SCALES else asked
        for name, one in parameters.items()
    ]


@torch.no_grad()
def _mean_error(goal: Goal) -> float:
    walk = goal.measured.stream.walk
    starts = list(walk.starts)
    checked = starts[:: math.ceil(len(starts) / CHECKED)]
    with mixed_precision(walk.dtype):
        return sum(float(goal.error(goal.measured, at)) for at in checked) / len(checked)
