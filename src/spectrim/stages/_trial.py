"""What a choice of cuts really costs: the loss on the search split, measured and counted."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectrim.allocators import allocators
from spectrim.architectures import Stack
from spectrim.job import Job
from spectrim.options import Factorize
from spectrim.plan import Decision
from spectrim.stages._allocate import Unit, decided
from spectrim.stages._cut import try_out


class Trial:
    """Measures choices of cuts for allocators that look at the true loss.

    losses: what was measured so far, by choice, in nats per token; the same is not measured twice.
    """

    def __init__(self, job: Job, options: Factorize, bought: list[Unit]) -> None:
        self.job = job
        self.options = options
        self.bought = bought
        self.losses: dict[tuple[int, ...], float] = {}
        self.chosen: list[int] | None = None

    def __call__(self, chosen: list[int]) -> float:
        """Return the loss on the search split with these cuts, nats per token."""
        key = tuple(chosen)
        if key not in self.losses:
            decisions = decided(self.options, self.bought, chosen)
            self.losses[key] = trial_loss(self.job, self.options, decisions)
            self.job.progress(len(self.losses), 0, "measuring choices")
        return self.losses[key]

    def report(self) -> None:
        """Note what an allocator that measured cost, and what it gained over the global one."""
        assert self.job.plan is not None
        if not self.losses:
            return
        evaluations = len(self.losses)
        curves = [unit.curve for unit in self.bought]
        size: Any = self.job.plan.about["budget"]
        choice = allocators.get("global")(curves, size["size"], self)
        own = trial_loss(self.job, self.options, self.job.plan.decisions)
        self.job.notes["allocation"] = {
            "allocator": self.options.allocator,
            "evaluations": evaluations,
            "search_loss": own,
            "search_loss_of_global": self(choice),
        }


def trial_loss(job: Job, options: Factorize, decisions: tuple[Decision, ...]) -> float:
    """Return the loss on the search split that decisions would lead to, nats per token."""
    walk = job.walk(job.splits.search)

    def block(stack: Stack, index: int) -> nn.Module:
        return try_out(job, options, (stack, index), walk.block(stack, index), decisions)

    return float(walk.sweep(block).double().mean())
