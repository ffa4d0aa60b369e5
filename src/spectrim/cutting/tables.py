"""Embedding and head of a model: what the head reads, and what other numbers in them would cost."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.files import atomic_file, key_of, locked
from spectrim.job.job import Job
from spectrim.text.tokens import Tokens
from spectrim.walk.moments import SecondMoment
from spectrim.walk.statistics import embedding_file
from spectrim.walk.stream import Stream
from spectrim.walk.sweeps import collect
from spectrim.walk.walk import HEAD_CHUNK, BlockWalk

SEQUENCES = 8  # of the calibration text: what the head reads is of few dimensions


def head_moment(job: Job) -> Float[Tensor, "hidden hidden"]:
    """Return the second moment of what the head reads; kept in the cache."""
    file = job.cache / "types" / f"{key_of('head', 1, job.statistics_key)}.safetensors"
    with locked(file):
        if not file.exists():
            with atomic_file(file) as partial:
                save_file({"moment": _moment(job)}, partial)
    return load_file(file)["moment"]


def embedding_moment(job: Job) -> Float[Tensor, "hidden hidden"]:
    """Return the moment of the loss's gradients of what the embedding delivers, of E[g gᵀ].

    It comes with the statistics; where those are of an earlier version, a part of the text is run
    through the blocks once more.
    """
    folder = job.statistics()
    if not embedding_file(folder).exists():
        text = job.splits.calibration
        walk = job.walk(Tokens(text.ids[:SEQUENCES], text.mask[:SEQUENCES]))
        folder = job.cache / "statistics" / key_of("embedding", 1, job.statistics_key)
        with locked(folder):
            collect(walk, folder, [], job.progress)
    return load_file(embedding_file(folder))["gradient_moment"]


def _moment(job: Job) -> Float[Tensor, "hidden hidden"]:
    text = job.splits.calibration
    walk = job.walk(Tokens(text.ids[:SEQUENCES], text.mask[:SEQUENCES]))
    stream = Stream(walk).through(walk.block)
    head: Any = walk.model.get_submodule(job.architecture.head)
    sums = SecondMoment.zeros(head.weight.shape[1])
    hook = head.register_forward_pre_hook(lambda _, args: sums.add(args[0].flatten(0, -2)))
    try:
        for at, hidden in stream.hidden.items():
            for rows in hidden[walk.mask(at)].split(HEAD_CHUNK):
                walk.logits(rows)
    finally:
        hook.remove()
    return sums.moment() / sums.tokens


def divergence_with(
    dense: Stream, name: str, values: Float[Tensor, "vocabulary hidden"], *, job: Job
) -> float:
    """Return the mean divergence, nats, of a model in which one table has other values.

    dense: the dense model's states behind its last block. name: of the parameter.
    """
    changed, walk = copy.deepcopy(job.model), dense.walk
    with torch.no_grad():
        changed.get_parameter(name).copy_(values)
    other = BlockWalk(changed, job.architecture, job.weights, walk.tokens, walk.batch)
    embed = changed.get_parameter(f"{job.architecture.embed}.weight")
    read_first = changed.get_parameter(name) is embed
    small = Stream(other).through(other.block) if read_first else dense
    return divergence(walk, dense, other, small)


@torch.no_grad()
def divergence(walk: BlockWalk, dense: Stream, other: BlockWalk, small: Stream) -> float:
    """Return the mean KL divergence of what follows every token, nats; both read one text."""
    total, tokens = 0.0, 0
    for at in walk.starts:
        mask = walk.mask(at)
        pairs = zip(
            dense.hidden[at][mask].split(HEAD_CHUNK),
            small.hidden[at][mask].split(HEAD_CHUNK),
            strict=True,
        )
        for one, two in pairs:
            right = torch.log_softmax(walk.logits(one).float(), -1)
            wrong = torch.log_softmax(other.logits(two).float(), -1)
            total += float((right.exp() * (right - wrong)).sum().double())
            tokens += len(one)
    return total / tokens
