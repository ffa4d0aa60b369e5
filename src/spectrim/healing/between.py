"""Blocks that are still whole, trained for what those that are rounded already deliver.

Blocks are rounded a group at a time, from the first to the last. Behind each group all blocks that
are not rounded yet are trained to let the model say what the dense one says of every token, so that
they make up for the errors of those in front of them; then the next group is rounded (as QuIP#
2402.04396, section 5, does with the maps of one block). Whole numbers can make up for more than the
scales of packed ones, which is all that is left to train once everything is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.files import atomic_file
from spectrim.healing.adam import Adam
from spectrim.healing.judging import make_trainable, mixed_precision
from spectrim.healing.objective import divergence_from_teacher
from spectrim.healing.student import InChunks
from spectrim.healing.teacher import Question, Teacher, ask
from spectrim.healing.windows import rate
from spectrim.job.blocks import current_block, write_block
from spectrim.job.dense_forms import dense_form
from spectrim.job.job import Job
from spectrim.job.loss import walk_now
from spectrim.job.repeats import repeats
from spectrim.model.architectures import Place
from spectrim.plan import Plan
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream

GROUPS = 10  # of blocks, about; behind each but the last one the others are trained
TOP = 64  # tokens of the dense model's distribution that are kept
WARMUP = 0.1  # of the steps behind a group
KEPT = "whole"  # the name of the files that hold what training has come to


@dataclass(frozen=True)
class Training:
    """How blocks are trained between roundings.

    tokens: the text. steps: all in all, spread evenly. learning_rate: the highest, as a part of the
    root mean square of each matrix or vector; behind each group it falls to zero along a cosine.
    """

    tokens: Tokens
    steps: int
    learning_rate: float


class Between:
    """The blocks of a job that are not rounded yet, in training."""

    def __init__(self, job: Job, training: Training, plan: Plan, folder: Path) -> None:
        """Stand in front of the first block; plan: of the rounded blocks that ``folder`` gets.

        Raises:
            SpectrimError: the model has an encoder and a decoder, or blocks that share numbers.
        """
        refuse_untrainable(job)
        self.source = job
        self.folder = folder / KEPT
        self.training = training
        self.job = replace(job, blocks=self.folder, healings=(*job.healings, True))
        """The job with blocks as training leaves them, for who rounds them."""
        self.rounded = replace(job, plan=plan, blocks=folder)
        walk = walk_now(job, training.tokens)
        self.teacher: Teacher = ask(job, walk, Question(TOP, 1.0, hidden=False))
        self.places = job.each_block()
        self.stream = Stream(walk).enter(self.places[0].stack)
        self.blocks = {one.index: current_block(job, one, torch.float32) for one in self.places}
        self.trained = {at: make_trainable(job, block) for at, block in self.blocks.items()}
        size = max(1, round(len(self.places) / GROUPS))
        self.ends = list(range(size, len(self.places), size))
        """How many blocks are rounded each time that the others are trained."""

    def enter(self, place: Place) -> None:
        """Write a block as training has left it, for the rounding to read."""
        if not self.job.block_file(self.folder, place).exists():
            write_block(self.source, self.folder, place, self.blocks[place.index])

    def leave(self, place: Place) -> None:
        """Go on behind a block that is rounded, and train those behind it where a group ends."""
        rounded = current_block(self.rounded, place, self.stream.walk.dtype)
        self.stream = self.stream.behind(dense_form(rounded), place)
        del self.blocks[place.index], self.trained[place.index]
        behind = place.index + 1
        if behind not in self.ends:
            return
        file = self.folder / f"behind-{behind}.safetensors"
        if file.exists():
            self._load(load_file(file))
        elif not self._overtaken(behind):
            self._train(self.ends.index(behind))
            with atomic_file(file) as partial:
                save_file(self._numbers(), partial)
            for older in self.folder.glob("behind-*.safetensors"):
                if older != file:
                    older.unlink()

    def _overtaken(self, behind: int) -> bool:
        """Return whether an interrupted run had come further than to train behind so many."""
        found = (one.stem.rpartition("-")[2] for one in self.folder.glob("behind-*.safetensors"))
        return any(int(one) > behind for one in found)

    def _train(self, group: int) -> None:
        steps = self.training.steps * (group + 1) // len(self.ends)
        begun = self.training.steps * group // len(self.ends)
        named = {
            f"{index}.{name}": one
            for index, parameters in self.trained.items()
            for name, one in parameters.items()
        }
        adam, count = Adam(named, relative=True), steps - begun
        for step, at in enumerate(self._order(begun, steps)):
            adam.begin(self.training.learning_rate * rate(step, count, round(WARMUP * count)))
            loss = self._loss(at)
            loss.backward()
            if not loss.isfinite():
                raise SpectrimError(
                    "training between roundings has diverged; lower learning_rate of quantize, or "
                    "leave out its steps"
                )
            adam.end()
            self.source.progress(
                begun + step + 1, self.training.steps, "training between roundings"
            )
        for one in named.values():
            one.grad = None

    def _order(self, begin: int, end: int) -> list[int]:
        """Return which batches some steps read; all are read before one comes again."""
        starts = list(self.stream.walk.starts)
        found: list[int] = []
        for turn in range(begin // len(starts), (end - 1) // len(starts) + 1):
            generator = torch.Generator().manual_seed(self.source.seed + turn)
            found += [starts[one] for one in torch.randperm(len(starts), generator=generator)]
        skipped = begin % len(starts)
        return found[skipped : skipped + end - begin]

    def _loss(self, at: int) -> Tensor:
        """Return the divergence from the dense model on one batch, nats per token."""
        walk, hidden = self.stream.walk, self.stream.hidden[at]
        with torch.enable_grad(), mixed_precision(walk.dtype):
            for place in self.places[-len(self.blocks) :]:
                hidden = walk.run(self.blocks[place.index], place, at, hidden)
            counted = walk.targets(at).flatten() != -100
            rows = hidden.flatten(0, 1)[counted].float()
            answers = self.teacher.answers(at, rows.device)

            def loss_of(leaf: Tensor, part: slice) -> Tensor:
                logits = walk.logits(leaf.to(walk.dtype)).float()
                return divergence_from_teacher(logits, answers, part, "forward")

            total: Tensor = InChunks.apply(rows, loss_of)  # type: ignore[no-untyped-call]
            return total / len(rows)

    def _numbers(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": one.detach().contiguous()
            for index, block in self.blocks.items()
            for name, one in block.named_parameters()
        }

    @torch.no_grad()
    def _load(self, known: dict[str, Tensor]) -> None:
        for index, block in self.blocks.items():
            for name, one in block.named_parameters():
                one.copy_(known[f"{index}.{name}"])


def refuse_untrainable(job: Job) -> None:
    """Raise SpectrimError for a model whose blocks cannot be trained between roundings."""
    refuse_two_stacks(job)
    assert job.plan is not None
    if repeats(job) or any(one.owner for one in job.plan.decisions):
        raise SpectrimError(
            "quantize cannot train between roundings where blocks share their numbers; leave out "
            "steps, or share nothing"
        )


def refuse_two_stacks(job: Job) -> None:
    """Raise SpectrimError for a model with an encoder and a decoder."""
    if len(job.architecture.stacks) > 1:
        raise SpectrimError(
            "quantize trains between roundings only where a model is one stack of blocks, and this "
            "one has an encoder and a decoder; leave out steps"
        )
