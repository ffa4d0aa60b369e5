"""Embedding and head of a model: what the head reads, and what other numbers in them would cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
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
LIKELY = 256  # words that the model expects most at a token, of which nearly all losses come
ALL = slice(None)
OTHERS = 4096  # words that stand for all that are never likely


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
            for rows in hidden[read_by_head(walk, at)].split(HEAD_CHUNK):
                walk.logits(rows)
    finally:
        hook.remove()
    return sums.moment() / sums.tokens


def read_by_head(walk: BlockWalk, at: int) -> Bool[Tensor, "batch length"]:
    """Return which of the states behind the last block are of text and not of padding."""
    return walk.stack_mask(walk.architecture.stacks[-1], at)


def with_rows(
    dense: Stream, name: str, values: Float[Tensor, "some hidden"], *, job: Job, rows: Any = ALL
) -> tuple[BlockWalk, Stream]:
    """Return the model with other values in rows of a table, and its states behind its last block.

    dense: those of the dense model. name: of the parameter. rows: an index.
    """
    changed, walk = copy.deepcopy(job.model), dense.walk
    with torch.no_grad():
        table = changed.get_parameter(name)
        table[rows] = values.to(table.dtype)
    other = BlockWalk(changed, job.architecture, job.weights, walk.tokens, walk.batch)
    read_first = table is changed.get_parameter(f"{job.architecture.embed}.weight")
    return other, Stream(other).through(other.block) if read_first else dense


@dataclass(frozen=True)
class Words:
    """The words of a vocabulary that matter to a text, and some that stand for all others."""

    rows: Int[Tensor, " some"]
    """Their rows of the table."""
    counted: Float[Tensor, " some"]
    """How many words each stands for."""


@torch.no_grad()
def words_of(dense: Stream) -> Words:
    """Return the words that a text has, or that a model expects in it, and others drawn.

    dense: the states behind the last block.
    """
    walk = dense.walk
    matter = torch.zeros(walk.logits(next(iter(dense.hidden.values()))[0, :1]).shape[1])
    for at in walk.starts:
        matter[walk.ids(at)[walk.mask(at)]] = 1.0
        for states in dense.hidden[at][read_by_head(walk, at)].split(HEAD_CHUNK):
            likely = walk.logits(states).topk(min(LIKELY, len(matter))).indices
            matter[likely.flatten()] = 1.0
    others = (matter == 0).nonzero()[:, 0]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:OTHERS]
    matter[others[drawn]] = len(others) / max(len(drawn), 1)
    rows = matter.nonzero()[:, 0]
    return Words(rows, matter[rows])


@torch.no_grad()
def divergence_of_words(dense: Stream, words: Words, other: BlockWalk, small: Stream) -> float:
    """Return the mean KL divergence, nats, of what follows every token, estimated from some words.

    With errors δ of the logits it is log E[exp δ] - E[δ], a mean over words as the dense model
    expects them.
    """
    walk, total, tokens = dense.walk, 0.0, 0
    for at in walk.starts:
        mask = read_by_head(walk, at)
        pairs = zip(
            dense.hidden[at][mask].split(HEAD_CHUNK),
            small.hidden[at][mask].split(HEAD_CHUNK),
            strict=True,
        )
        for one, two in pairs:
            right = walk.logits(one).float()[:, words.rows]
            errors = other.logits(two).float()[:, words.rows] - right
            expected = (right + words.counted.log()).log_softmax(-1)
            mean = (expected.exp() * errors).sum(-1)
            total += float(((expected + errors).logsumexp(-1) - mean).sum().double())
            tokens += len(one)
    return total / tokens


@torch.no_grad()
def divergence(walk: BlockWalk, dense: Stream, other: BlockWalk, small: Stream) -> float:
    """Return the mean KL divergence of what follows every token, nats; both read one text."""
    total, tokens = 0.0, 0
    for at in walk.starts:
        mask = read_by_head(walk, at)
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
