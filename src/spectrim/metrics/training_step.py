"""Time of one training step, models taking turns: what it costs to go on training a model.

A step is a forward pass, the loss and the gradients of all parameters, on one window. The
optimiser's own pass is left out: which one it is decides its cost, and it takes as long for each
number in any model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._reading import device
from spectrim.metrics.speed import now, timed, timed_models

TASKS = ("training_step",)
TOKENS = 256


def training_step(
    models: Sequence[nn.Module],
    ids: Int[Tensor, "1 length"],
    *,
    rounds: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """Return the seconds of a step of every model in every round, after one that does not count.

    Models swap places every round. Their parameters, modes, gradients and what needs a gradient
    are afterwards as they were; the random state too.

    Args:
        models: the reference first.
        ids: one window; an encoder-decoder model reads it and is to write it again.
        rounds: timed rounds, at least 1.
        progress: called with (rounds done, rounds in all).

    Raises:
        SpectrimError: no round, or a window under two tokens.
    """
    if rounds < 1 or ids.shape[1] < 2:
        raise SpectrimError("a training step needs a round and two tokens; expected at least those")
    times: list[list[float]] = [[] for _ in models]
    with torch.random.fork_rng(devices=_cuda(models)), torch.enable_grad():
        for done in range(-1, rounds):
            order = range(len(models)) if done % 2 else reversed(range(len(models)))
            for index in order:
                taken = _step(models[index], ids)
                times[index] += [taken] if done >= 0 else []
            if progress is not None:
                progress(done + 1, rounds)
    return times


def measure(pair: Pair) -> Measurement:
    """Return the median milliseconds of every model's step and the ratio to the first's.

    Baselines, whose weights are not packed in memory, are left out.
    """
    first, rounds = next(iter(pair.texts.values()), None), pair.evaluation.rounds
    if first is None or rounds < 1:
        return {}
    models, ids = timed_models(pair), first[:1, :TOKENS]
    said = pair.said("training steps")
    seconds = training_step(list(models.values()), ids, rounds=rounds, progress=said)
    times = [[1000 * one for one in own] for own in seconds]
    return {
        label: [_told(score, ids.shape[1]) for score in _scores(own, times[0])]
        for label, own in zip(models, times, strict=True)
    }


def _scores(own: list[float], reference: list[float]) -> Iterator[Score]:
    other = None if own is reference else reference
    yield from timed("training_step", own, other, "ms", "lower")


def _told(score: Score, tokens: int) -> Score:
    how = {**score.settings, "tokens": tokens, "step": "forward and backward, no optimiser"}
    return Score(
        score.name, score.value, score.unit, score.better, score.n, score.interval, settings=how
    )


def _step(model: Any, ids: Int[Tensor, "1 length"]) -> float:
    where = device(model)
    ids = ids.to(where)
    with _trained(model):
        start = now(where)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return now(where) - start


@contextmanager
def _trained(model: nn.Module) -> Iterator[None]:
    """Put a model into training, all its parameters with it, and back afterwards."""
    parameters = [one for one in model.parameters() if one.is_floating_point()]
    before = [(one.requires_grad, one.grad) for one in parameters]
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for one in parameters:
        one.requires_grad_(True)
        one.grad = None
    try:
        yield
    finally:
        for one, (needed, gradient) in zip(parameters, before, strict=True):
            one.grad = gradient
            one.requires_grad_(needed)
        for module, mode in modes:
            module.training = mode


def _cuda(models: Sequence[nn.Module]) -> list[torch.device]:
    return list({where for where in map(device, models) if where.type == "cuda"})
