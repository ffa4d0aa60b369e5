"""Joules that reading and decoding take, where the machine has a counter; never an estimate.

codecarbon falls back on a model of the processor's load where it finds no counter. Such numbers
are not measured and are not shown; nor are those of the memory, which it always estimates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._packages import package
from spectrim.metrics._reading import device, evaluating
from spectrim.metrics.speed import one_round, timed, timed_models

TASKS = ("energy",)
SECONDS = 1.0  # of work between two readings, far above the counters' steps
JOULES = 3.6e6  # in a kilowatt-hour

Meter = Callable[[Callable[[], None]], float]
"""Called with work to do; returns the joules that it took."""


def energy(
    models: Sequence[nn.Module],
    prompt: Int[Tensor, "1 length"],
    meter: Meter,
    *,
    rounds: int = 5,
    new_tokens: int = 16,
) -> list[list[float]]:
    """Return the joules per 1000 tokens of every model in every round, models taking turns.

    Each round reads the prompt and decodes, over and over for at least a second; one that does not
    count goes first.

    Args:
        models: the reference first.
        prompt: one sequence of token ids.
        meter: what counts the joules.
        rounds: rounds that count.
        new_tokens: tokens decoded after the prompt; both sorts of tokens count.
    """
    found: list[list[float]] = [[] for _ in models]
    with evaluating(models):
        for model in models:
            one_round(model, prompt, new_tokens)
        for done in range(rounds):
            order = range(len(models)) if done % 2 else reversed(range(len(models)))
            for index in order:
                work = _Work(partial(one_round, models[index], prompt, new_tokens))
                joules = meter(work)
                tokens = work.done * (prompt.shape[1] + new_tokens)
                found[index].append(1000 * joules / tokens)
    return found


def measure(pair: Pair) -> Measurement:
    """Return the joules per 1000 tokens of every model, or that they were not measured, and why.

    Baselines, whose weights are not packed in memory, are left out.

    Raises:
        UnavailableError: codecarbon is not installed.
    """
    first, chosen = next(iter(pair.texts.values()), None), pair.evaluation
    models = timed_models(pair)
    if first is None or chosen.rounds < 1:
        return {}
    where = device(next(iter(models.values())))
    reason = no_counter(where)
    if reason is not None:
        return _not_measured(models, reason)
    found = energy(
        list(models.values()),
        first[:1, : chosen.prompt_tokens],
        _codecarbon(where),
        rounds=chosen.rounds,
        new_tokens=chosen.new_tokens,
    )
    if any(one <= 0 for own in found for one in own):
        return _not_measured(models, "the counter did not move")
    return {
        label: list(timed("energy", own, found[0] if index else None, "J/1000 tokens", "lower"))
        for index, (label, own) in enumerate(zip(models, found, strict=True))
    }


def no_counter(where: torch.device) -> str | None:
    """Return why energy cannot be measured on a device, None where codecarbon reads a counter.

    Raises:
        UnavailableError: codecarbon is not installed.
    """
    package("codecarbon", "energy")
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    from codecarbon.core.cpu import is_rapl_available
    from codecarbon.core.gpu import is_nvidia_system
    from codecarbon.core.util import is_linux_os

    if where.type == "cuda":
        return None if is_nvidia_system() else "no NVIDIA counter answers"
    if where.type != "cpu":
        return f"no counter is known for {where.type}"
    if is_linux_os() and is_rapl_available():
        return None
    return "the processor's energy counter (RAPL) is not there or not readable"


def _codecarbon(where: torch.device) -> Meter:
    """Return a meter that reads the counter of one device, and writes and sends nothing."""
    from codecarbon import OfflineEmissionsTracker

    tracker: Any = OfflineEmissionsTracker(
        country_iso_code="FRA",  # for emissions alone, which are not used
        output_methods=[],
        output_handlers=[],
        emissions_endpoint=None,
        electricitymaps_api_token=None,
        allow_multiple_runs=True,
        log_level="error",
        tracking_mode="machine",
        gpu_ids=[_uuid(where)] if where.type == "cuda" else None,
        force_cpu_power=None,
        force_mode_cpu_load=False,
        pue=1.0,
    )
    part = "gpu_energy" if where.type == "cuda" else "cpu_energy"

    def meter(work: Callable[[], None]) -> float:
        tracker.start_task()
        work()
        return JOULES * float(getattr(tracker.stop_task(), part))

    return meter


class _Work:
    """Does something over and over for ``SECONDS``, and counts how often."""

    def __init__(self, once: Callable[[], Any]) -> None:
        self.once = once
        self.done = 0

    def __call__(self) -> None:
        start = perf_counter()
        while self.done == 0 or perf_counter() - start < SECONDS:
            self.once()
            self.done += 1


def _not_measured(models: Sequence[str] | dict[str, Any], reason: str) -> Measurement:
    row = Score.not_measured("energy", "J/1000 tokens", "lower", reason)
    return {label: [row] for label in models}


def _uuid(where: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(where).uuid}"
