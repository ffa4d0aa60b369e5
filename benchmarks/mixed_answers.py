"""Whether answers of a server are those to their own prompts, and whether others would be found."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrim.model import sources

NEAR = 1e-3  # nats that a greedy token may stay below the likeliest, as sums in fp32 round


@dataclass
class Stream:
    """One streamed answer: when its first token came, and the seconds from request to end."""

    prompt: str
    text: str
    pieces: list[str]
    """The text of each token, as `logprobs` tells it."""
    first: float
    seconds: float
    tokens: int


def mixed(folder: Path, streams: list[Stream]) -> dict[str, Any]:
    """Return how many answers are not those to their prompts, and how many swaps would be found."""
    model, tokenizer = sources.load(str(folder))
    known = {text: token for token in range(len(tokenizer))
             if "\N{REPLACEMENT CHARACTER}" not in (text := tokenizer.decode([token]))}  # fmt: skip
    answers = [[known[piece] for piece in takewhile(known.__contains__, one.pieces)]
               for one in streams]  # fmt: skip
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
    other_text = [not one.text.startswith(text) for one, text in zip(streams, texts, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(tokens) for tokens in answers], batch_first=True, padding_value=-1
    )
    own, swaps = [], []
    for at, one in enumerate(streams):
        below = distances(model, tokenizer(one.prompt).input_ids, answers[at])
        own.append(float(below.gather(1, padded[at, : len(below), None]).max()))
        swaps.append(first_other(below, padded, at))
    others = torch.cat(swaps)
    return {
        "mixed_up": sum(text or far > NEAR for text, far in zip(other_text, own, strict=True)),
        "farthest": max(own), "swaps": len(others), "swaps_found": int((others > NEAR).sum()),
        "swap_nearest": float(others.min()),
    }  # fmt: skip


@torch.inference_mode()
def distances(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return how far every token is below the likeliest, in nats, [answer, vocabulary]."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    below: Tensor = logits.amax(-1, keepdim=True) - logits
    return below


def first_other(below: Tensor, answers: Tensor, own: int) -> Tensor:
    """Return how far the first other token of every other answer is below the likeliest, [others].

    It is 0 where an answer ends before any other token: that swap would not be found.
    """
    mine, others = answers[own, : len(below)], torch.arange(len(answers)) != own
    found = answers[others, : len(below)]
    differ = (found != mine).int()
    first = differ.argmax(1)
    token = found.gather(1, first[:, None])[:, 0]
    known = differ.any(1) & (token >= 0)
    return torch.where(known, below[first, token.clamp_min(0)], 0.0)
