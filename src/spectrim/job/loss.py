"""The loss of the model as it is now, on text set aside."""

from __future__ import annotations

import copy

from spectrim.job.blocks import current_block
from spectrim.job.job import Job, load_rest
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk


def walk_now(job: Job, tokens: Tokens) -> BlockWalk:
    """Return a walk of a text with all outside the blocks as it is now."""
    model = copy.deepcopy(job.model)
    load_rest(model, job.rest(), job.compute_dtype)
    known = job.walk(tokens)
    return BlockWalk(model, job.architecture, job.weights, known.tokens, known.batch)


def search_loss(job: Job) -> float:
    """Return the loss of the model as it is now on the search split, nats per token."""
    walk = walk_now(job, job.splits.search)
    return Stream(walk).through(lambda place: current_block(job, place, walk.dtype)).mean()
