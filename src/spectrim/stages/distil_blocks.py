"""Train each block to give what the dense one gives: no vocabulary, one window of blocks at a time.

A block is trained on what the smaller model delivers to it, on what the dense one does, or on both
in turn; its target is the dense block's output on the dense model's states. Only a window of blocks
and the hidden states of the text before and behind it are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spectrim.cutting.samples import spread
from spectrim.healing.balanced import balance, pivot
from spectrim.healing.judging import begin, take, text_name, trained
from spectrim.healing.learned_codes import learn, settle
from spectrim.healing.windows import Goal, Pace, Window, match
from spectrim.job.blocks import current_block, keep_block, next_step
from spectrim.job.job import BATCH, Job, load_rest
from spectrim.job.repeats import repeats
from spectrim.model import architectures, sources
from spectrim.model.architectures import Place
from spectrim.model.sources import Weights
from spectrim.recipe.options import Part
from spectrim.text.tokens import Tokens
from spectrim.walk.moments import damped
from spectrim.walk.statistics import load_block
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

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


@dataclass
class _Streams:
    """The same tokens in the dense and in the smaller model, in front of the same window."""

    dense: Stream
    small: Stream


def distil_blocks(job: Job, options: Options) -> None:
    """Train window after window; they stay as they were where the search split does not gain."""
    begin(job)
    tokens = spread(job.splits.calibration, options.sequences)
    folder, streams = next_step(job, "distil_blocks"), _streams(job, tokens, options)
    windows = _windows(job, options.window)
    for done, places in enumerate(windows, start=1):
        _heal(job, streams, places, (folder, options))
        job.progress(done, len(windows), "matching blocks to the dense ones")
    note = {
        "stage": "distil_blocks",
        "steps": options.steps,
        "windows": len(windows),
        "tokens": tokens.counted(),
        "text": text_name(job),
    }
    take(job, folder, note)


def _windows(job: Job, size: int) -> list[list[Place]]:
    """Return the blocks in groups of ``size``; none reaches over the end of a stack."""
    found = []
    for _, run in groupby(job.each_block(), key=lambda place: place.stack.path):
        places = list(run)
        found += [places[at : at + size] for at in range(0, len(places), size)]
    return found


def _streams(job: Job, tokens: Tokens, options: Options) -> _Streams:
    """Return both in front of the first block; dense is the model that came, if its blocks fit.

    Sparse weights lie in a folder of their own, so the model of the job is sparse already. Of a
    model with other blocks, or turned into another basis, only itself can be the target.
    """
    batch = options.batch or max(1, BATCH // tokens.ids.shape[1])
    small = Stream(BlockWalk(job.model, job.architecture, job.weights, tokens, batch))
    if job.original is None or "sparsified" not in job.notes or "dropped" in job.notes:
        return _Streams(small, small)
    model = sources.skeleton(job.original)
    architecture, weights = architectures.of(model.config), Weights(job.original.folder, model)
    stacks = tuple(f"{stack.path}." for stack in architecture.stacks)
    rest = weights.read(name for name in weights.names() if not name.startswith(stacks))
    now = job.weights.read(rest)
    if any(not torch.equal(rest[name], now[name]) for name in rest):
        return _Streams(small, small)
    load_rest(model, rest, job.compute_dtype)
    return _Streams(Stream(BlockWalk(model, architecture, weights, tokens, batch)), small)


def _heal(job: Job, streams: _Streams, places: list[Place], how: tuple[Path, Options]) -> None:
    """Train one window, write it, and carry both streams behind it."""
    folder, options = how
    first = places[0]
    streams.dense, streams.small = streams.dense.reach(first), streams.small.reach(first)
    target = streams.dense
    for place in places:
        target = target.behind(target.walk.block(place), place)
    if not all(job.block_file(folder, place).exists() for place in places):
        _train(job, streams, target, (places, folder, options))
    for place in places:
        block = job.stored_block(folder, place, streams.small.walk.dtype)
        streams.small = streams.small.behind(block, place)
    streams.dense = target


def _train(
    job: Job,
    streams: _Streams,
    target: Stream,
    how: tuple[list[Place], Path, Options],
) -> None:
    """Train the blocks of a window and write them; a block that repeats an earlier one follows."""
    places, folder, options = how
    twins = repeats(job)
    blocks = [learn(balance(current_block(job, place, torch.float32))) for place in places]
    own = [place.name not in twins for place in places]
    metric = _metric(job, places[-1]) if options.metric == "loss" else None
    small = Window(places, blocks, streams.small)
    dense = Window(places, blocks, streams.dense)
    inputs = {"propagated": [small], "dense": [dense], "both": [small, dense]}[options.inputs]
    pace = Pace(options.steps, options.learning_rate)
    learnt = nn.ModuleList(block for block, is_own in zip(blocks, own, strict=True) if is_own)
    goal = Goal(inputs, small, target.hidden, metric)
    known, reached = match(trained(job, learnt), goal, pace)
    if not reached < known:  # pivots chosen anew would round anew
        blocks = [current_block(job, place, torch.float32) for place in places]
    for place, block, is_own in zip(places, blocks, own, strict=True):
        if not is_own:
            index = int(twins[place.name].rpartition(".")[2])
            block = job.stored_block(folder, Place(place.stack, index), torch.float32)
        keep_block(job, folder, place, settle(pivot(block)))


def _metric(job: Job, place: Place) -> Tensor | None:
    """Return the gradient's second moment behind a block, [hidden, hidden], of mean diagonal 1."""
    last = [
        site.name for site in job.block_sites(place) if site.role == f"{place.stack.prefix}down"
    ]
    known = load_block(job.statistics(), place)
    moment = known[last[0]].gradient_moment if len(last) == 1 else None
    if moment is None or not moment.any():
        return None
    full = damped(moment, DAMPING).float()
    return full / full.diagonal().mean()
