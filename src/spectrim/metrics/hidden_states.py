"""How far a smaller model's hidden states point away from the dense one's, block by block.

The cosine of the angle between both models' states of the same token after each block, 1 where they
point the same way, and of their sentence embeddings. Blocks of models of different depth are
compared at the same share of the depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from spectrim.errors import UnavailableError
from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._reading import device, evaluating
from spectrim.metrics.asking.answers import answered
from spectrim.metrics.asking.certainty import mean, resampled
from spectrim.metrics.asking.embeddings import embeddings
from spectrim.model.architectures import architecture_of

TASKS = ("hidden_states",)
SHOWN = "Hidden states"
MOST = 256  # tokens of a window
QUICK, FULL = 4, 16  # windows
SENTENCES = {"quick": 40, "full": 200}
LOW = 5  # percentile

Cosines = NDArray[np.float64]


def measure(pair: Pair) -> Measurement:
    """Return cosines of the states after each block and of sentences, smaller against dense.

    ``settings["blocks"]`` of "cosine" holds the mean after each block, for a page to draw, and
    ``settings["blocks_low"]`` of "cosine_low" the 5th percentile.
    """
    labels = list(pair.judged)
    if not pair.texts or len(labels) < 2:
        return {}
    text, ids = next(iter(pair.texts.items()))
    sentences = _sentences(pair, ids)
    return {
        label: _scores(pair, label, ids, text) + _of_sentences(pair, label, sentences, text)
        for label in labels[1:]
    }


def block_names(model: Any) -> list[str]:
    """Return the blocks in the order of the forward pass, as "block 0" or "encoder block 0"."""
    return [
        f"{stack.prefix.replace('_', ' ')}block {index}"
        for stack in architecture_of(model.config).stacks
        for index, _ in enumerate(model.get_submodule(stack.path).children())
    ]


def block_states(
    model: Any, ids: Int[Tensor, "sequences length"]
) -> list[Float[Tensor, "sequences length hidden"]]:
    """Return the hidden states after every block, in the order of ``block_names``.

    An encoder-decoder model gets the ids as the encoder's input and as the decoder's.
    """
    ids = ids.to(device(model))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with evaluating([model]), _listening(model) as heard:
        model(**inputs, use_cache=False)
    return heard


def cosines(
    dense: Any, small: Any, ids: Int[Tensor, "sequences length"]
) -> Float[Tensor, "blocks sequences length"]:
    """Return the cosine of both models' states of every token after each block of the smaller.

    Block j of m is compared with the dense block at the same share of the depth, which is block j
    where both have as many.

    Raises:
        UnavailableError: the states differ in width, so that no angle lies between them.
    """
    first, other = block_states(dense, ids), block_states(small, ids)
    if first[0].shape[-1] != other[0].shape[-1]:
        raise UnavailableError(
            f"hidden states of {first[0].shape[-1]} and {other[0].shape[-1]} numbers have no angle"
        )
    return torch.stack(
        [
            functional.cosine_similarity(
                first[_beside(block, len(other), len(first))].float().cpu(), own.float().cpu(), -1
            )
            for block, own in enumerate(other)
        ]
    )


def largest_drop(curve: Sequence[float]) -> tuple[int, float]:
    """Return the block that loses most against the one before it, and how much it loses.

    Before the first block both models are taken to agree.
    """
    drops = [before - after for before, after in zip([1.0, *curve], curve)]  # noqa: B905
    worst = max(range(len(drops)), key=drops.__getitem__)
    return worst, drops[worst]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text that have 4 to 60 words; its ragged ends are left out."""
    parts = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))[1:-1]
    return [part for part in parts if 4 <= len(part.split()) <= 60]


def _beside(block: int, count: int, other: int) -> int:
    return max(0, round((block + 1) / count * other) - 1)


@contextmanager
def _listening(model: Any) -> Iterator[list[Tensor]]:
    heard: list[Tensor] = []

    def hear(block: Any, given: Any, output: Any) -> None:
        heard.append(output[0] if isinstance(output, tuple) else output)

    hooks = [
        block.register_forward_hook(hear)
        for stack in architecture_of(model.config).stacks
        for block in model.get_submodule(stack.path).children()
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _scores(pair: Pair, label: str, ids: Int[Tensor, "sequences length"], text: str) -> list[Score]:
    reference = next(iter(pair.judged))
    windows = ids[: pair.items(QUICK, FULL), :MOST].tolist()
    dense, small = pair.models[reference], pair.models[label]

    def ask(batch: Sequence[Any]) -> list[list[list[float]]]:
        found = cosines(dense, small, torch.tensor(batch))[:, 0]  # [blocks, tokens]
        return [[[round(value, 6) for value in block] for block in found.tolist()]]

    answers = answered(pair, [reference, label], "hidden states", windows, ask)
    every = np.array(answers, dtype=float)  # [windows, blocks, tokens]
    told = {"text_read": text, "windows": len(windows), "tokens": every.shape[2]}
    curve = [float(every[:, block].mean()) for block in range(every.shape[1])]
    lows = np.percentile(every, LOW, axis=(0, 2)).tolist()
    over = {**told, "interval": "95 % t over windows"}
    found = [
        mean(every.mean((1, 2)), "cosine", "cosine", "higher", SHOWN, **over, blocks=curve),
        _low(pair, every, "cosine_low", {**told, "blocks_low": lows}),
        mean(every[:, -1].mean(1), "last_cosine", "cosine", "higher", SHOWN, **over),
    ]
    worst, drop = largest_drop(curve)
    if drop > 0:
        where = {**told, "task": SHOWN, "block": block_names(small)[worst], "drop": drop}
        found.append(Score("breaking_block", worst, "block", "none", len(windows), None, where))
    return found


def _low(pair: Pair, every: Cosines, name: str, told: dict[str, Any]) -> Score:
    """Return the 5th percentile over all but the first axis, with resamples of the first."""

    def low(values: Cosines) -> float:
        return float(np.percentile(values, LOW))

    ends = resampled(low, [list(every)], pair.evaluation.seed)
    said = {**told, "task": SHOWN, "percentile": LOW, "seed": pair.evaluation.seed}
    return Score(name, low(every), "cosine", "higher", len(every), ends, said)


def _sentences(pair: Pair, ids: Int[Tensor, "sequences length"]) -> list[str]:
    if pair.tokenizer is None:
        return []
    most = pair.items(SENTENCES["quick"], SENTENCES["full"]) or SENTENCES["full"]
    found: list[str] = []
    for row in ids:
        found += sentences(str(pair.tokenizer.decode(row, skip_special_tokens=True)))
        if len(found) >= most:
            break
    return found[:most]


def _of_sentences(pair: Pair, label: str, texts: Sequence[str], text: str) -> list[Score]:
    if not texts:
        return []
    reference = next(iter(pair.judged))
    first, other = (embeddings(pair, one, SHOWN, texts, MOST) for one in (reference, label))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(other, axis=1)
    found = (first * other).sum(1) / np.maximum(lengths, 1e-12)
    told = {"text_read": text, "sentences": len(texts)}
    return [
        mean(found, "sentence_cosine", "cosine", "higher", SHOWN, **told),
        _low(pair, found, "sentence_cosine_low", told),
    ]
