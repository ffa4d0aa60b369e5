"""How much learning fits into so many minutes: which stages, with which options, on this machine.

A block is trained for a few steps, which says how fast this machine learns; the rest is counting.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from spectrim.healing.judging import mixed_precision
from spectrim.job.job import BATCH, Job
from spectrim.model.architectures import Place
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream

ROUNDING = 0.5  # of the minutes go to the rounding of blocks, the rest to the whole model
MOST = 400  # steps of a block, four times as many as were tried
LEAST = 40  # steps of a block, with fewer of which its codes hardly move
TRIED = 4  # steps that are timed; the quickest counts, the first one allocates
ROUNDED = 1.25  # a step with codes against one of a dense block: states, and batches set aside
WHOLE = 1.2  # a step of the whole model against one of all its dense blocks: unpacking
LOOKS = 8  # at the search split, while the whole model is trained


class Speed(NamedTuple):
    """Seconds of one step on BATCH tokens: of a dense block, and of the whole packed model."""

    block: float
    model: float


def learning_within(job: Job, minutes: float) -> list[dict[str, Any]]:
    """Return the stages that learn for about so many minutes behind ``quantize``.

    They are entries of a recipe; there are none where not even ``distil`` can take a step for each
    of its looks at the search split.
    """
    speed = measured_speed(job)
    blocks, seconds = len(job.each_block()), 60 * minutes
    search = job.splits.search.ids.numel() / BATCH * speed.model / 3  # forwards alone
    fits = int(ROUNDING * seconds / (blocks * ROUNDED * speed.block))
    steps = min(MOST, fits)
    stages: list[dict[str, Any]] = []
    if steps >= LEAST:
        stages.append({"learn_rounding": {"steps": steps}})
        seconds -= steps * blocks * ROUNDED * speed.block + 2 * search
    whole = int((seconds - (LOOKS + 2) * search) / speed.model)
    if whole >= LOOKS:
        every = max(1, whole // LOOKS)
        warmup = min(10, whole // 10)
        stages.append({"distil": {"steps": whole, "every": every, "warmup": warmup}})
    return stages


def measured_speed(job: Job) -> Speed:
    """Return how fast this machine trains the model of a job, measured on its first block."""
    text = job.splits.calibration
    many = max(1, BATCH // text.ids.shape[1])
    tokens = Tokens(text.ids[:many], text.mask[:many])
    walk = job.walk(tokens)
    place = job.each_block()[0]
    stream = Stream(walk).enter(place.stack)
    block = _seconds(stream, place) * BATCH / tokens.ids.numel()
    blocks = len(job.each_block())
    numbers = sum(
        s.in_features * s.out_features for s in job.sites if s.name.startswith(place.name)
    )
    head = job.model.get_output_embeddings()
    ends = head.weight.numel() if head is not None else 0  # read forwards and once backwards
    return Speed(block, WHOLE * block * blocks + block * (2 / 3) * ends / max(1, numbers))


def _seconds(stream: Stream, place: Place) -> float:
    """Return the seconds of the quickest of a few steps of a dense block."""
    block = stream.walk.block(place).float().requires_grad_(True)
    quickest = float("inf")
    for _ in range(TRIED):
        began = time.perf_counter()
        with torch.enable_grad(), mixed_precision(stream.walk.dtype):
            out = stream.run(block, place, 0).float().square().mean()
        out.backward()
        quickest = min(quickest, time.perf_counter() - began)
    return quickest
