"""Time to the first token, tokens per second of prefill and decoding, models taking turns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.metrics import Better, Measurement, Pair, Score
from spectrim.metrics._reading import device, evaluating


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one model in every round, in the order of the rounds."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]


def speed(
    models: Sequence[nn.Module],
    prompt: Int[Tensor, "1 length"],
    *,
    rounds: int = 5,
    new_tokens: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Speed]:
    """Return the speed of every model, measured in turns after one round that does not count.

    Models swap places every round, so that a machine that heats up or slows down hits both alike.
    Prefill reads the prompt and gives one token; decoding then gives ``new_tokens`` greedy ones,
    one at a time, from the cache. An encoder-decoder model reads the prompt with its encoder.

    Args:
        models: the reference first.
        prompt: one sequence of token ids.
        rounds: timed rounds, at least 1.
        new_tokens: tokens decoded in each, at least 1.
        progress: called with (rounds done, rounds in all).

    Raises:
        SpectrimError: rounds or new_tokens below 1, or an empty prompt.
    """
    if rounds < 1 or new_tokens < 1 or not prompt.numel():
        raise SpectrimError("speed needs a round, a new token and a prompt; expected at least 1")
    times: list[list[tuple[float, float]]] = [[] for _ in models]
    with evaluating(models):
        for done in range(-1, rounds):
            order = range(len(models)) if done % 2 else reversed(range(len(models)))
            for index in order:
                taken = one_round(models[index], prompt, new_tokens)
                times[index] += [taken] if done >= 0 else []
            if progress is not None:
                progress(done + 1, rounds)
    return [
        Speed(
            tuple(prompt.shape[1] / prefill for prefill, _ in one),
            tuple(new_tokens / decode for _, decode in one),
        )
        for one in times
    ]


def measure(pair: Pair) -> Measurement:
    """Return median speeds of every model and their ratios to the first, with the rounds' range.

    ``first_token`` is the time in which the prompt is read and gives one token. Baselines, whose
    weights are not packed in memory, are left out.
    """
    chosen = pair.evaluation
    first = next(iter(pair.texts.values()), None)
    if first is None or chosen.rounds < 1:
        return {}
    prompt = first[:1, : chosen.prompt_tokens]
    models = timed_models(pair)
    found = speed(
        list(models.values()),
        prompt,
        rounds=chosen.rounds,
        new_tokens=chosen.new_tokens,
        progress=pair.said("timing"),
    )
    return {
        label: list(_scores(one, found[0], prompt.shape[1], label_is_first=not index))
        for index, (label, one) in enumerate(zip(models, found, strict=True))
    }


def timed_models(pair: Pair) -> dict[str, PreTrainedModel]:
    """Return the models whose speed in this process is their own: all but the baselines."""
    left_out = pair.evaluation.baselines
    return {label: model for label, model in pair.models.items() if label not in left_out}


def timed(
    name: str, own: Sequence[float], reference: Sequence[float] | None, unit: str, better: Better
) -> Iterator[Score]:
    """Yield the median of what was timed in rounds and, beside a reference, that of the ratios.

    Ratios are taken round by round, which is steadier than the ratio of two medians.
    """
    yield _median(name, own, unit, better)
    if reference is not None:
        ratios = [one / other for one, other in zip(own, reference, strict=True)]
        yield _median(f"{name}_ratio", ratios, "x", better)


def _scores(one: Speed, reference: Speed, length: int, *, label_is_first: bool) -> Iterator[Score]:
    for name in ("prefill", "decode"):
        other = None if label_is_first else getattr(reference, name)
        yield from timed(name, getattr(one, name), other, "tokens/s", "higher")
    own, first = ([1000 * length / rate for rate in each.prefill] for each in (one, reference))
    yield from timed("first_token", own, None if label_is_first else first, "ms", "lower")


def _median(name: str, values: Sequence[float], unit: str, better: Better) -> Score:
    spread = (min(values), max(values))
    says = {"interval": "lowest and highest round"}
    return Score(name, median(values), unit, better, len(values), spread, says)


def one_round(model: nn.Module, prompt: Int[Tensor, "1 length"], count: int) -> tuple[float, float]:
    """Return the seconds of reading a prompt and of decoding ``count`` greedy tokens after it."""
    where = device(model)
    ids = prompt.to(where)
    start = now(where)
    output, fixed = _prefill(model, ids)
    middle = now(where)
    for _ in range(count):
        token = output.logits[:, -1:].argmax(-1)  # [1, 1]
        output = model(**fixed(token), past_key_values=output.past_key_values, use_cache=True)
    return middle - start, now(where) - middle


def _prefill(
    model: nn.Module, ids: Int[Tensor, "1 length"]
) -> tuple[Any, Callable[[Tensor], dict[str, Any]]]:
    """Return the first output and what turns a new token into the inputs of the next step."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return _read_by_encoder(model, ids)
    # Only the last token's logits are needed; models that can leave out the others do.
    last = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}
    return model(input_ids=ids, use_cache=True, **last), lambda token: {"input_ids": token}


def _read_by_encoder(
    model: Any, ids: Int[Tensor, "1 length"]
) -> tuple[Any, Callable[[Tensor], dict[str, Any]]]:
    told = model.get_encoder()(input_ids=ids)

    def step(token: Tensor) -> dict[str, Any]:
        return {"encoder_outputs": told, "decoder_input_ids": token}

    begin = torch.full_like(ids[:, :1], model.config.decoder_start_token_id or 0)
    return model(**step(begin), use_cache=True), step


def _parameters(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def now(where: torch.device) -> float:
    """Return the time in seconds when all that was asked of a device is done."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return perf_counter()
