"""Learn how packed maps are rounded: each block is trained, codes and all, to do as the dense one.

What GPTQ chose for each map by itself is where the codes begin. They are then moved together with
scales, offsets and norms, so that the errors of the maps of a block make up for each other, and for
what the blocks before it got wrong. Of paths through a trellis only the
scales are moved.
"""

from __future__ import annotations

import torch
from pydantic import Field

from spectrim.cutting.samples import spread
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.trellis_matrix import TrellisMatrix
from spectrim.healing.block_by_block import block_by_block, dense_and_small, windows_of
from spectrim.healing.judging import ensure_plan, keep_if_better, text_name
from spectrim.healing.learned_codes import settle
from spectrim.healing.reconstruction import Rates, reconstruct
from spectrim.healing.rounded_matrix import learn_rounding as learnt
from spectrim.healing.windows import Goal, Window
from spectrim.job.blocks import copy_block, current_block, next_step, write_block
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.recipe.options import Part
from spectrim.walk.stream import Stream

LEARNT = (PackedMatrix, TrellisMatrix)
LEAVES = ("changed maps", "trained")
NOTE = "healed"
NEEDS = {
    "packed": "learn_rounding trains packed maps, and no stage before it packs any; put quantize "
    "in front of it"
}


class Options(Part):
    """The stage that learns which codes packed maps have, block by block.

    steps: for each block; 0 trains nothing.
    code_rate: how far a code moves in a step at most, in codes; it falls to zero along a cosine.
    learning_rate: of scales, offsets, norms and biases, as a part of their size.
    sequences: of the calibration text, spread over it; all of them where there are fewer.
    batch: sequences in a step; 0 takes as many as make 1024 tokens.
    """

    steps: int = Field(default=200, ge=0)
    code_rate: float = Field(default=0.01, gt=0)
    learning_rate: float = Field(default=3e-3, gt=0)
    sequences: int = Field(default=96, ge=1)
    batch: int = Field(default=0, ge=0)


def learn_rounding(job: Job, options: Options) -> None:
    """Train block after block; all stay as they were where the search split does not gain."""
    ensure_plan(job)
    tokens = spread(job.splits.calibration, options.sequences)
    folder = next_step(job, "learn_rounding")
    windows = windows_of(job, 1)
    rates = Rates(options.code_rate, options.learning_rate)

    def train(places: list[Place], target: Stream, _: Stream, student: Stream) -> None:
        (place,) = places
        block = current_block(job, place, torch.float32)
        if not any(isinstance(module, LEARNT) for module in block.modules()):
            return copy_block(job, folder, place)
        before = job.reference(place) if job.reference is not None else None
        own = Window(places, [learnt(block, before)], student)
        if not reconstruct(own.blocks[0], Goal([own], own, target.hidden, alike=True),
                           options.steps, rates):  # fmt: skip
            return copy_block(job, folder, place)
        write_block(job, folder, place, settle(own.blocks[0]))

    block_by_block(job, folder, windows, dense_and_small(job, tokens, options.batch), train)
    note = {
        "stage": "learn_rounding",
        "steps": options.steps,
        "windows": len(windows),
        "tokens": tokens.counted(),
        "text": text_name(job),
    }
    keep_if_better(job, folder, note)
