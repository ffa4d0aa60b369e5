"""A block with packed maps trained, codes and all, to give what the dense block gives.

Everything moves by Adam, codes by a part of a code in a step. By the sign of each gradient alone
(SignRound, 2309.05516) codes lost half again as much: a batch is small here, and its signs mostly
noise, over which Adam averages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.healing.adam import BETAS, size_of
from spectrim.healing.judging import mixed_precision
from spectrim.healing.learned_codes import LATENT
from spectrim.healing.windows import Goal, rate

WARMUP = 0.05  # of all steps
HELD = 8  # of so many batches one is not trained on, but says which step is kept
MOST_HELD = 4  # of these; each is read at every look
EPSILON = 1e-12  # of Adam: gradients of single codes are far below its usual 1e-8
LOOKS = 5  # at these batches, the last behind the last step


@dataclass(frozen=True)
class Rates:
    """How far numbers move in a step at most; falls to zero along a cosine.

    codes: in codes. others: as a part of the size of each vector or matrix of scales.
    """

    codes: float
    others: float


def reconstruct(block: nn.Module, goal: Goal, steps: int, rates: Rates) -> bool:
    """Train a block on a goal; return whether it is better than it was.

    It ends as it was after the step that had the least error on the batches that are set aside,
    the one before the first among them.
    """
    named = trained(block)
    starts = list(goal.measured.stream.walk.starts)
    held = starts[HELD - 1 :: HELD][:MOST_HELD] or starts
    read = [at for at in starts if at not in held] or starts
    update = _Update(named, rates)
    looks = {round(steps * part / LOOKS) for part in range(1, LOOKS + 1)}
    first = best = _mean_error(goal, held)
    kept = _copies(named)
    for step in range(steps):
        error = _error(goal, read[step % len(read)])
        if not error.isfinite():
            break
        update(error, rate(step, steps, round(WARMUP * steps)))
        if step + 1 in looks and (found := _mean_error(goal, held)) < best:
            best, kept = found, _copies(named)
    for name, value in kept.items():
        named[name].data.copy_(value)
    return best < first


def trained(block: nn.Module) -> dict[str, nn.Parameter]:
    """Let packed maps and vectors of a block need gradients; return their parameters by name."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in block.named_parameters():
        last = name.rpartition(".")[2]
        own = last in (LATENT, "scale", "offset") or parameter.dim() == 1
        if own and parameter.is_floating_point():
            parameter.requires_grad_(True)
            found[name] = parameter
    return found


class _Update:
    """One step from an error, by Adam."""

    def __init__(self, named: dict[str, nn.Parameter], rates: Rates) -> None:
        self.highest = [
            rates.codes if name.endswith(f".{LATENT}") else rates.others * size_of(name, one)
            for name, one in named.items()
        ]
        self.adam = torch.optim.Adam(
            [{"params": [one]} for one in named.values()], betas=BETAS, eps=EPSILON, fused=True
        )

    def __call__(self, error: Tensor, part: float) -> None:
        """Change the parameters; part: of the highest rates."""
        for group, highest in zip(self.adam.param_groups, self.highest, strict=True):
            group["lr"] = highest * part
        self.adam.zero_grad()
        error.backward()
        self.adam.step()


def _copies(named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in named.items()}


def _error(goal: Goal, at: int) -> Tensor:
    with torch.enable_grad(), mixed_precision(goal.measured.stream.walk.dtype):
        return goal.error(goal.measured, at)


@torch.no_grad()
def _mean_error(goal: Goal, starts: list[int]) -> float:
    with mixed_precision(goal.measured.stream.walk.dtype):
        return sum(float(goal.error(goal.measured, at)) for at in starts) / len(starts)
