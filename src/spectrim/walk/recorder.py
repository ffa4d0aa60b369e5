"""What a model passes to its blocks, noted by recorders that stand in the blocks' place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """What the model passes to one block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class EncoderOutput:
    """Stands in a Call for the encoder's output, which the walk keeps itself."""


class Recorder(nn.Module):
    """Stands where a block stood: notes what it is called with and passes an answer on."""

    def __init__(self, block: nn.Module, answer: Callable[[Tensor, Call], Any]) -> None:
        super().__init__()
        self.__dict__["stands_for"] = block  # hidden from nn.Module: its weights are not ours
        self.__dict__["answer"] = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stands_for"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the answer to this call."""
        return self.__dict__["answer"](hidden_states, Call(args, kwargs))


def shared(value: Any, like: Any, encoder: Tensor | None) -> Any:
    """Return ``value`` with the encoder's output marked and tensors equal to ``like``'s shared."""
    if isinstance(value, Tensor):
        if value is encoder:
            return EncoderOutput()
        if (
            isinstance(like, Tensor)
            and value.shape == like.shape
            and value.dtype == like.dtype
            and torch.equal(value, like)
        ):
            return like
        return value
    if isinstance(value, dict):
        like = like if isinstance(like, dict) else {}
        return {key: shared(item, like.get(key), encoder) for key, item in value.items()}
    if isinstance(value, tuple):
        like = like if isinstance(like, tuple) and len(like) == len(value) else (None,) * len(value)
        return tuple(shared(item, other, encoder) for item, other in zip(value, like, strict=True))
    return value


def filled_in(value: Any, encoder: Tensor | None) -> Any:
    """Return ``value`` with the encoder's output put back where it was marked."""
    if isinstance(value, EncoderOutput):
        return encoder
    if isinstance(value, dict):
        return {key: filled_in(item, encoder) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(filled_in(item, encoder) for item in value)
    return value
