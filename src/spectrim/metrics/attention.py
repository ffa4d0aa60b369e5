"""Where a smaller model looks elsewhere: its attention maps beside the dense model's.

One fixed sentence is read by all models; every row of a map is a distribution over the tokens that
it may see, so two models are compared row by row. The head whose map moved most is kept to be
looked at, with the magnitude of its two-dimensional Fourier transform (Park and Kim, How Do Vision
Transformers Work?, 2202.06709, section 3): maps that are smoothed lose their high frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.errors import UnavailableError
from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._reading import device, evaluating
from spectrim.metrics.asking.answers import answered

TASKS = ("attention",)
SENTENCE = (
    "The old lighthouse keeper climbed the narrow stairs, lit the lamp before dusk, and waited for "
    "the ships to come home."
)
MOST = 24  # tokens: more cannot be told apart on a page
DIGITS = 4


def measure(pair: Pair) -> Measurement:
    """Return the mean distance of each model's attention from that of the first, in 0 … 1.

    The score of the second model has, in its settings, ``maps`` and ``fourier`` (label → [tokens,
    tokens]) of the ``head`` in the ``block`` where it moved most, the ``tokens``, and ``blocks``,
    the mean distance in each block.

    Raises:
        UnavailableError: there is no tokenizer, a model gives no attention maps, or the models
            differ in blocks or heads.
    """
    labels = list(pair.judged)
    if not pair.asked("attention") or len(labels) < 2:
        return {}
    if pair.tokenizer is None:
        raise UnavailableError("attention maps need a tokenizer; give the model's folder its own")
    ids = pair.tokenizer(SENTENCE, verbose=False).input_ids[:MOST]
    items = [{"ids": ids, "digits": DIGITS}]
    (found,) = answered(pair, labels, "attention maps", items, lambda _: [_asked(pair, ids)])
    tokens = [str(pair.tokenizer.decode([one])) for one in ids]
    shown = {name: found[name] for name in ("block", "head", "maps", "fourier")}
    return {
        label: [_score(found["distances"][label], tokens, {} if place else shown)]
        for place, label in enumerate(labels[1:])
    }


def attention_maps(model: Any, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "blocks heads t t"]:
    """Return the attention of every head, a distribution in each row, float32.

    Of an encoder-decoder model it is the encoder's attention to its own input. Blocks that have no
    attention are left out.

    Raises:
        UnavailableError: the model gives no attention maps.
    """
    body = model.get_encoder() if model.config.is_encoder_decoder else model
    with evaluating([model]), _eager(model):
        out = body(input_ids=ids[None].to(device(model)), output_attentions=True)
    maps = [one[0].float().cpu() for one in out.attentions or () if one is not None]
    if not maps:
        raise UnavailableError(
            f"{type(model).__name__} gives no attention maps; leave 'attention' out"
        )
    return torch.stack(maps)  # [blocks, heads, tokens, tokens]


def distances(
    first: Float[Tensor, "blocks heads t t"], other: Float[Tensor, "blocks heads t t"]
) -> Float[Tensor, "blocks heads"]:
    """Return the total variation distance, 0 … 1, of each head's rows, their mean.

    It is half the sum of the absolute differences of two distributions: the part of the attention
    that went elsewhere.
    """
    return ((first - other).abs().sum(-1) / 2).mean(-1)


def fourier(attention: Float[Tensor, "t t"]) -> Float[Tensor, "t t"]:
    """Return log(1 + magnitude) of the two-dimensional Fourier transform, frequency 0 mid-way."""
    spectrum = np.fft.fftshift(np.fft.fft2(attention.double().numpy()))
    return torch.from_numpy(np.log1p(np.abs(spectrum)))


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Compute attention step by step meanwhile: the fused ways never have the maps."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _asked(pair: Pair, ids: list[int]) -> dict[str, Any]:
    """Return the distances of all models from the first, and the head of the second to look at."""
    tokens = torch.tensor(ids)
    maps = {label: attention_maps(model, tokens) for label, model in pair.judged.items()}
    first, *others = maps
    if any(maps[label].shape != maps[first].shape for label in others):
        raise UnavailableError(
            "attention maps compare head by head, and the models differ in blocks or heads"
        )
    apart = {label: distances(maps[first], maps[label]) for label in others}
    moved = apart[others[0]]
    block, head = divmod(int(moved.argmax()), moved.shape[1])
    chosen = {label: one[block, head] for label, one in maps.items()}
    return {
        "distances": {label: one.tolist() for label, one in apart.items()},
        "block": block,
        "head": head,
        "maps": _rounded(chosen),
        "fourier": _rounded({label: fourier(one) for label, one in chosen.items()}),
    }


def _rounded(maps: Mapping[str, Tensor]) -> dict[str, list[list[float]]]:
    return {
        label: [[round(value, DIGITS) for value in row] for row in one.tolist()]
        for label, one in maps.items()
    }


def _score(apart: list[list[float]], tokens: list[str], shown: dict[str, Any]) -> Score:
    held = np.asarray(apart)  # [blocks, heads]
    settings = {
        "task": "Attention",
        "sentence": SENTENCE,
        "tokens": tokens,
        "blocks": [round(float(one), DIGITS) for one in held.mean(axis=1)],
        **shown,
    }
    # The heads are all there are and the sentence is one, so there is nothing to put an interval on
    return Score("moved", float(held.mean()), "share", "lower", held.size, None, settings)
