"""Is the currency worth its name? Predicted loss against measured loss over a range of budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from spectrim.allocators import allocators
from spectrim.cutting.allocation import allocate, bought_units
from spectrim.cutting.cut import try_out
from spectrim.errors import SpectrimError
from spectrim.job.job import Budget, Job
from spectrim.plan import Plan
from spectrim.recipe.options import Factorize
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

BUDGETS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
SEQUENCES = 2


def prediction(job: Job, options: Factorize) -> dict[str, object]:
    """Return budgets, the loss increase predicted for each, that measured, and their correlation.

    Measured on the search split, in nats per token, with the cut matrices multiplied out and
    nothing refined; all budgets go through the blocks side by side. Budgets that what is protected
    leaves no room for are left out. The correlation is Pearson's, of the logarithms, as the losses
    span orders of magnitude; the budgets where one of the two is not above zero, "left_out" in
    number, are left out of it.

    Raises:
        SpectrimError: the model is an encoder-decoder, which this does not cover.
    """
    if len(job.architecture.stacks) > 1:
        raise SpectrimError("predictions do not cover encoder-decoders; leave out --predictions")
    tokens = job.splits.search
    walk = job.walk(Tokens(tokens.ids[:SEQUENCES], tokens.mask[:SEQUENCES]))
    known = {keep: _plan(job, options, keep) for keep in BUDGETS}
    plans = [plan for plan in known.values() if plan is not None]
    dense, *measured = _losses(job, options, walk, plans)
    predicted = [plan.predicted_loss for plan in plans]
    increase = [loss - dense for loss in measured]
    both = torch.tensor([predicted, increase])
    above = both[:, (both > 0).all(0)].log()
    return {
        "budgets": [keep for keep, plan in known.items() if plan is not None],
        "of": "linear",
        "predicted": predicted,
        "measured": increase,
        "correlation": float(torch.corrcoef(above)[0, 1]),
        "left_out": both.shape[1] - above.shape[1],
    }


def _plan(job: Job, options: Factorize, keep: float) -> Plan | None:
    at = dataclasses.replace(job, budget=Budget(keep, "linear"))
    if allocators.constant(options.allocator, "MEASURES"):  # the question is the curves' worth
        options = options.model_copy(update={"allocator": "global"})
    try:
        return allocate(at, options, bought_units(at, options))
    except SpectrimError:
        return None


def _losses(job: Job, options: Factorize, walk: BlockWalk, plans: list[Plan]) -> Iterator[float]:
    """Yield the loss of the dense model and of each plan, nats per token."""
    (stack,) = walk.architecture.stacks
    streams = [Stream(walk).enter(stack)] * (1 + len(plans))
    places = walk.places(stack)
    for done, place in enumerate(places, start=1):
        dense = walk.block(place)
        for at, plan in enumerate((None, *plans)):
            decisions = plan.decisions if plan else ()
            block = try_out(job, options, place, dense, decisions)
            streams[at] = streams[at].behind(block, place)
        job.progress(done, len(places), "measuring predictions")
    for stream in streams:
        yield stream.mean()
