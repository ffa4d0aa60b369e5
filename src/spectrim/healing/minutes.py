"""How much learning fits into so many minutes: where, and with how many steps, on this machine.

A block is trained for a few steps, which says how fast this machine learns; the rest is counting.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import psutil
import torch

from spectrim.healing.between import GROUPS
from spectrim.healing.end_to_end import SHIPPED, Healing, healing_text
from spectrim.healing.judging import mixed_precision
from spectrim.job.job import BATCH, Job
from spectrim.model.architectures import Place
from spectrim.text import default_mix
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream

TRIED = 4  # steps that are timed; the quickest counts, the first one allocates
WHOLE = 1.2  # a step of the whole model against one of all its dense blocks: unpacking
LOOKS = 8  # at the search split, while the whole model is trained
BETWEEN = 0.4  # of the time goes to training between roundings, where the model allows it
REACHED = 0.6  # of a step of the whole model is one between roundings: half of the blocks, the head
HELD = 16  # bytes for each number in training: itself, its gradient, two moments


class Learning(NamedTuple):
    """What learns: options of ``quantize``, and the stages behind it, as a recipe says them."""

    options: dict[str, Any]
    stages: list[dict[str, Any]]


def learning_within(job: Job, minutes: float) -> Learning:
    """Return what learns for about so many minutes: between roundings, and then the whole model.

    There is nothing where ``distil`` cannot take a step for each of its looks at the search split.
    Where the calibration reads the shipped text, all of it is learnt from. The dense model is asked
    about every token of that first.
    """
    step = seconds_a_step(job)
    text = SHIPPED if job.text.startswith(default_mix.SHIPPED) else None
    read = healing_text(job, Healing(learning_rate=1, text=text)).ids.numel()
    search = job.splits.search.ids.numel() / BATCH * step / 3  # forwards alone
    asked = read / BATCH * step / 3
    left = 60 * minutes - asked - (LOOKS + 2) * search
    said = {"text": text} if text else {}
    options: dict[str, Any] = {}
    if trained_between(job) and (left - asked) * BETWEEN > GROUPS * REACHED * step:
        between = (left - asked) * BETWEEN  # all of the text is read once more, block by block
        options = {**said, "steps": int(between / (REACHED * step))}
        left -= asked + between
    steps = int(left / step)
    if steps < LOOKS:
        return Learning({}, [])
    every, warmup = max(1, steps // LOOKS), min(10, steps // 10)
    return Learning(
        options, [{"distil": {**said, "steps": steps, "every": every, "warmup": warmup}}]
    )


def trained_between(job: Job) -> bool:
    """Return whether there is anything between roundings: one stack of blocks that fits in memory.

    Of a single block nothing is left to train once it is rounded.
    """
    numbers = sum(one.in_features * one.out_features for one in job.sites if one.block >= 0)
    fits = HELD * numbers < psutil.virtual_memory().total / 2
    return len(job.architecture.stacks) == 1 and len(job.each_block()) > 1 and fits


def seconds_a_step(job: Job) -> float:
    """Return how long one step of the whole packed model takes on BATCH tokens.

    Measured on the first block of the dense model.
    """
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
    return WHOLE * block * blocks + block * (2 / 3) * ends / max(1, numbers)


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
