"""Train each block to give what the dense one gives: no vocabulary, one window of blocks at a time.

A block is trained on what the smaller model delivers to it, on what the dense one does, or on both
in turn; its target is the dense block's output on the dense model's states. Only a window of blocks
and the hidden states of the text before and behind it are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spectrim.cutting.samples import spread
from spectrim.healing.balanced import balance, pivot
from spectrim.healing.block_by_block import block_by_block, dense_and_small, windows_of
from spectrim.healing.judging import ensure_plan, keep_if_better, make_trainable, text_name
from spectrim.healing.learned_codes import learn, settle
from spectrim.healing.windows import Goal, Window, match
from spectrim.job.blocks import current_block, next_step, write_block
from spectrim.job.job import Job
from spectrim.job.repeats import repeats
from spectrim.model.architectures import Place
from spectrim.recipe.options import Part
from spectrim.walk.moments import damped
from spectrim.walk.statistics import block_statistics
from spectrim.walk.stream import Stream

DAMPING = 1e-2
LEAVES = ("changed maps", "trained")
NOTE = "healed"


class Options(Part):
    """The stage that trains each block to do what the dense block does.

    window: blocks trained together.
    steps: of the optimiser, for each window; 0 trains nothing.
    learning_rate: of Adam, at its highest; it falls to zero along a cosine. Scales and offsets of
        packed codes move by a hundredth of their size at most.
    sequences: of the calibration text, spread over it; all of them where there are fewer.
    batch: sequences in a step; 0 takes as many as make 1024 tokens.
    inputs: what a block is trained on: "propagated", what the smaller model delivers; "dense", what
        the dense one does; "both" in turn.
    metric: how errors are weighed: "plain", all dimensions alike; "loss", by the second moment of
        the loss's gradient there. Where a block has no single map that writes its output (experts),
        that is plain too.
    """

    window: int = Field(default=1, ge=1)
    steps: int = Field(default=100, ge=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    sequences: int = Field(default=48, ge=1)
    batch: int = Field(default=0, ge=0)
    inputs: Literal["propagated", "dense", "both"] = "both"
    metric: Literal["plain", "loss"] = "plain"


def distil_blocks(job: Job, options: Options) -> None:
    """Train window after window; they stay as they were where the search split does not gain."""
    ensure_plan(job)
    tokens = spread(job.splits.calibration, options.sequences)
    healing = _Healing(job, options, next_step(job, "distil_blocks"), repeats(job))
    windows = windows_of(job, options.window)
    streams = dense_and_small(job, tokens, options.batch)
    block_by_block(job, healing.folder, windows, streams, healing.train)
    note = {
        "stage": "distil_blocks",
        "steps": options.steps,
        "windows": len(windows),
        "tokens": tokens.counted(),
        "text": text_name(job),
    }
    keep_if_better(job, healing.folder, note)


@dataclass(frozen=True)
class _Healing:
    """The training of all windows, one after the other.

    folder: of the healed blocks. twins: by name a block that repeats an earlier one → that one.
    """

    job: Job
    options: Options
    folder: Path
    twins: dict[str, str]

    def train(self, places: list[Place], target: Stream, teacher: Stream, student: Stream) -> None:
        """Train the blocks of a window and write them; one that repeats an earlier one follows."""
        options = self.options
        blocks = [learn(balance(current_block(self.job, at, torch.float32))) for at in places]
        on_student, on_teacher = (Window(places, blocks, one) for one in (student, teacher))
        inputs = {
            "propagated": [on_student],
            "dense": [on_teacher],
            "both": [on_student, on_teacher],
        }[options.inputs]
        metric = _metric(self.job, places[-1]) if options.metric == "loss" else None
        goal = Goal(inputs, on_student, target.hidden, metric)
        both = zip(places, blocks, strict=True)
        own = nn.ModuleList(block for place, block in both if place.name not in self.twins)
        parameters = make_trainable(self.job, own)
        if not match(parameters, goal, options.steps, options.learning_rate):
            # pivots chosen anew would round anew
            blocks = [current_block(self.job, place, torch.float32) for place in places]
        for place, block in zip(places, blocks, strict=True):
            if place.name in self.twins:
                index = int(self.twins[place.name].rpartition(".")[2])
                block = self.job.stored_block(self.folder, Place(place.stack, index), torch.float32)
            write_block(self.job, self.folder, place, settle(pivot(block)))


def _metric(job: Job, place: Place) -> Tensor | None:
    """Return the gradient's second moment behind a block, [hidden, hidden], of mean diagonal 1."""
    last = [
        site.name for site in job.block_sites(place) if site.role == f"{place.stack.prefix}down"
    ]
    known = block_statistics(job.statistics(), place)
    moment = known[last[0]].gradient_moment if len(last) == 1 else None
    if moment is None or not moment.any():
        return None
    full = damped(moment, DAMPING).float()
    return full / full.diagonal().mean()
