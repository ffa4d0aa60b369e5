"""What end-to-end healing minimises, and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.healing.divergences import Kind, divergence, with_remainder
from spectrim.healing.judging import mixed_precision
from spectrim.healing.student import InChunks, Reader
from spectrim.healing.teacher import Answers, Teacher
from spectrim.walk.walk import HEAD_CHUNK, BlockWalk


@dataclass(frozen=True)
class LossWeights:
    """How the loss is made up: one divergence, and what is added to it with which weight.

    temperature: of both distributions; the divergence is multiplied by its square, which keeps its
    gradients in size (Hinton et al., 1503.02531).
    """

    kind: Kind
    temperature: float
    hidden: float
    next_token: float


@dataclass(frozen=True)
class Objective:
    """The loss of the smaller model on the healing text, beside the dense one's answers."""

    reader: Reader
    walk: BlockWalk
    teacher: Teacher
    weights: LossWeights

    def loss(self, run: nn.Module, start: int) -> Tensor:
        """Return the loss of one batch, nats per predicted token and what is added."""
        with mixed_precision(self.walk.dtype, next(run.parameters()).device.type):
            hidden = self.reader.hidden(run, self.walk, start)
            answers = self.teacher.answers(start, hidden.device)
            targets = self.walk.targets(start).to(hidden.device)
            targets = targets[targets != -100]

            def loss_of(leaf: Tensor, part: slice) -> Tensor:
                return self._chunk_loss(leaf, answers, targets, part)

            total: Tensor = InChunks.apply(hidden, loss_of) / len(hidden)  # type: ignore[no-untyped-call]
            if answers.hidden is None:
                return total
            wanted = answers.hidden.float()
            missed = (hidden.float() - wanted).square().mean() / wanted.square().mean()
            return total + self.weights.hidden * missed

    def _chunk_loss(self, leaf: Tensor, answers: Answers, targets: Tensor, part: slice) -> Tensor:
        weights = self.weights
        logits = self.reader.logits(leaf)
        total = divergence_from_teacher(logits, answers, part, weights.kind, weights.temperature)
        if weights.next_token:
            total = total + weights.next_token * functional.cross_entropy(
                logits, targets[part], reduction="sum"
            )
        return total


def divergence_from_teacher(
    logits: Tensor, answers: Answers, part: slice, kind: Kind, temperature: float = 1.0
) -> Tensor:
    """Return how far logits of some tokens are from the teacher's answers, summed, in nats."""
    log_probabilities = torch.log_softmax(logits / temperature, -1).gather(1, answers.ids[part])
    teacher, student = with_remainder(answers.top[part]), with_remainder(log_probabilities)
    return temperature**2 * divergence(teacher, student, kind).sum()


@torch.no_grad()
def cross_entropy(reader: Reader, run: nn.Module, walk: BlockWalk) -> float:
    """Return the loss on a text in nats per token."""
    total, count = 0.0, 0
    for start in walk.starts:
        with mixed_precision(walk.dtype, next(run.parameters()).device.type):
            hidden = reader.hidden(run, walk, start)
        targets = walk.targets(start).to(hidden.device)
        targets = targets[targets != -100]
        for rows, wanted in zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True):
            losses = functional.cross_entropy(reader.logits(rows), wanted, reduction="none")
            total += float(losses.double().sum())
        count += len(targets)
    return total / max(count, 1)
