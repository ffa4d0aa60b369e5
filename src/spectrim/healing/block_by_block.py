"""Blocks trained one window after the other, on the states that stand in front of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.job.dense_forms import dense_form
from spectrim.job.job import BATCH, Job, load_rest
from spectrim.model import sources
from spectrim.model.architectures import Place, architecture_of
from spectrim.model.sources import Weights
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

Train = Callable[[list[Place], Stream, Stream, Stream], None]
"""(blocks of a window, the dense states behind it, those before it, the smaller model's before it);
writes the trained blocks."""


def windows_of(job: Job, size: int) -> list[list[Place]]:
    """Return the blocks in groups of ``size``; none reaches over the end of a stack."""
    found = []
    for _, run in groupby(job.each_block(), key=lambda place: place.stack.path):
        places = list(run)
        found += [places[at : at + size] for at in range(0, len(places), size)]
    return found


def dense_and_small(job: Job, tokens: Tokens, batch: int) -> tuple[Stream, Stream]:
    """Return teacher and student before the first block: the model that came, if its blocks fit.

    Sparse weights lie in a folder of their own, so the model of the job is sparse already. Of a
    model with other blocks, or turned into another basis, only itself can be the target, with
    embedding and head as they were before they were rounded.
    batch: sequences in a step; 0 takes as many as make 1024 tokens.
    """
    batch = batch or max(1, BATCH // tokens.ids.shape[1])
    student = Stream(BlockWalk(job.model, job.architecture, job.weights, tokens, batch))
    if job.original is not None and job.sparsified and not job.orders:
        model = sources.skeleton(job.original)
        weights = Weights(job.original.folder, model)
        rest, now = outside(weights, model), outside(job.weights, job.model)
        if rest.keys() == now.keys() and all(torch.equal(rest[name], now[name]) for name in rest):
            load_rest(model, rest, job.compute_dtype)
            architecture = architecture_of(model.config)
            return Stream(BlockWalk(model, architecture, weights, tokens, batch)), student
    if not job.ends:
        return student, student
    model = copy.deepcopy(job.model)
    load_rest(model, outside(job.weights, model), job.compute_dtype)
    return Stream(BlockWalk(model, job.architecture, job.weights, tokens, batch)), student


def outside(weights: Weights, model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors outside the blocks as a checkpoint has them."""
    stacks = tuple(f"{stack.path}." for stack in architecture_of(model.config).stacks)
    return weights.read(name for name in weights.names() if not name.startswith(stacks))


def block_by_block(
    job: Job,
    folder: Path,
    windows: list[list[Place]],
    streams: tuple[Stream, Stream],
    train: Train,
) -> None:
    """Train each window whose blocks are not written yet, and go on behind what was written.

    folder: of the trained blocks. streams: the dense and the smaller model's, in front of the
    first block.
    """
    teacher, student = streams
    for done, places in enumerate(windows, start=1):
        teacher, student = teacher.reach(places[0]), student.reach(places[0])
        target = teacher
        for place in places:
            target = target.behind(target.walk.block(place), place)
        if not all(job.block_file(folder, place).exists() for place in places):
            train(places, target, teacher, student)
        for place in places:
            block = job.stored_block(folder, place, student.walk.dtype)
            student = student.behind(dense_form(block), place)
        teacher = target
        job.progress(done, len(windows), "matching blocks to the dense ones")
