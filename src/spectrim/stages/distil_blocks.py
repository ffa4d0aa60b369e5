"""Train each block to give what the dense one gives: no vocabulary, one window of blocks at a time.

A block is trained on what the smaller model delivers to it, on what the dense one does, or on both
in turn; its target is the dense block's output on the dense model's states. Only a window of blocks
and the hidden states of the text before and behind it are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
from spectrim.model.architectures import Place, Stack
from spectrim.model.sources import Weights
from spectrim.recipe.options import Part
from spectrim.text.tokens import Tokens
from spectrim.walk.moments import damped
from spectrim.walk.statistics import load_block
from spectrim.walk.walk import BlockWalk

States = dict[int, Tensor]  # hidden states [batch, length, hidden] by the batch's first sequence
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

    dense: States = field(default_factory=dict)
    small: States = field(default_factory=dict)
    dense_encoded: States = field(default_factory=dict)
    small_encoded: States = field(default_factory=dict)


@dataclass(frozen=True)
class _Walks:
    """The walks of the dense and of the smaller model over the same batches."""

    dense: BlockWalk
    small: BlockWalk


def distil_blocks(job: Job, options: Options) -> None:
    """Train window after window; they stay as they were where the search split does not gain."""
    begin(job)
    tokens = spread(job.splits.calibration, options.sequences)
    folder, walks = next_step(job, "distil_blocks"), _walks(job, tokens, options)
    streams = _Streams()
    windows = _windows(job, options.window)
    for done, places in enumerate(windows, start=1):
        if places[0].index == 0:
            _enter(walks, places[0].stack, streams)
        _heal(job, walks, streams, places, (folder, options))
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


def _walks(job: Job, tokens: Tokens, options: Options) -> _Walks:
    """Return both walks; the dense model is the one that came, where its blocks are the same ones.

    Sparse weights lie in a folder of their own, so the model of the job is sparse already. Of a
    model with other blocks, or turned into another basis, only itself can be the target.
    """
    batch = options.batch or max(1, BATCH // tokens.ids.shape[1])
    small = BlockWalk(job.model, job.architecture, job.weights, tokens, batch)
    if job.original is None or "sparsified" not in job.notes or "dropped" in job.notes:
        return _Walks(small, small)
    model = sources.skeleton(job.original)
    architecture, weights = architectures.of(model.config), Weights(job.original.folder, model)
    stacks = tuple(f"{stack.path}." for stack in architecture.stacks)
    rest = weights.read(name for name in weights.names() if not name.startswith(stacks))
    now = job.weights.read(rest)
    if any(not torch.equal(rest[name], now[name]) for name in rest):
        return _Walks(small, small)
    load_rest(model, rest, job.compute_dtype)
    return _Walks(BlockWalk(model, architecture, weights, tokens, batch), small)


def _enter(walks: _Walks, stack: Stack, streams: _Streams) -> None:
    """Begin a stack: what came out of an encoder is what the decoder reads beside its text."""
    if streams.dense and walks.small.is_encoder_decoder:
        with torch.no_grad():
            streams.dense_encoded = {
                at: walks.dense.encoded(h, at) for at, h in streams.dense.items()
            }
            streams.small_encoded = {
                at: walks.small.encoded(h, at) for at, h in streams.small.items()
            }
    for walk, encoded in (
        (walks.dense, streams.dense_encoded),
        (walks.small, streams.small_encoded),
    ):
        started = {at: walk.start(stack, at, encoded.get(at)) for at in walk.starts}
        if walk is walks.small:
            streams.small = started
        if walk is walks.dense:
            streams.dense = dict(started)


def _heal(
    job: Job, walks: _Walks, streams: _Streams, places: list[Place], how: tuple[Path, Options]
) -> None:
    """Train one window, write it, and carry both streams behind it."""
    folder, options = how
    target = streams.dense
    for place in places:
        block = walks.dense.block(place)
        target = _carried(walks.dense, block, place, target, streams.dense_encoded)
    if not all(job.block_file(folder, place).exists() for place in places):
        _train(job, walks.small, streams, target, (places, folder, options))
    for place in places:
        block = job.stored_block(folder, place, walks.small.dtype)
        streams.small = _carried(walks.small, block, place, streams.small, streams.small_encoded)
    streams.dense = target


@torch.no_grad()
def _carried(
    walk: BlockWalk, block: nn.Module, place: Place, states: States, encoded: States
) -> States:
    return {at: walk.run(block, place, at, h, encoded.get(at)) for at, h in states.items()}


def _train(
    job: Job,
    walk: BlockWalk,
    streams: _Streams,
    target: States,
    how: tuple[list[Place], Path, Options],
) -> None:
    """Train the blocks of a window and write them; a block that repeats an earlier one follows."""
    places, folder, options = how
    twins = repeats(job)
    blocks = [learn(balance(current_block(job, place, torch.float32))) for place in places]
    own = [place.name not in twins for place in places]
    metric = _metric(job, places[-1]) if options.metric == "loss" else None
    small = Window(walk, places, blocks, streams.small, streams.small_encoded)
    dense = Window(walk, places, blocks, streams.dense, streams.dense_encoded)
    inputs = {"propagated": [small], "dense": [dense], "both": [small, dense]}[options.inputs]
    pace = Pace(options.steps, options.learning_rate)
    learnt = nn.ModuleList(block for block, is_own in zip(blocks, own, strict=True) if is_own)
    known, reached = match(trained(job, learnt), Goal(inputs, small, target, metric), pace, walk)
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
