"""A model of transformers with many sequences in one batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from spectrim.engines.transformers import OneSequence
from spectrim.serve.batch import PIECE, Vector
from spectrim.serve.rows import Rows


class Batched:
    """Prompts are read one by one, each into a cache of its own; answers are continued together."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int,
        context: int,
    ) -> None:
        self.slots, self.context = slots, context
        self._words = OneSequence(model, tokenizer, context)
        self.encode, self.decode = self._words.encode, self._words.decode
        self._model = model
        self._known = frozenset(inspect.signature(model.forward).parameters)
        self._read: dict[int, DynamicCache] = {}
        self._rows = Rows(slots)
        self._slots: list[int] = []  # the slot of each row

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int], *, last: bool) -> Vector | None:
        """Read a piece of a prompt into a slot; with the last one return the logits behind it."""
        cache = self._read.setdefault(slot, DynamicCache())
        output = self._run(input_ids=torch.tensor([list(tokens)]), past_key_values=cache)
        if not last:
            return None
        self._rows.add(self._read.pop(slot))
        self._slots.append(slot)
        logits: ndarray = output.logits[0, -1].float().numpy()
        return logits

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, int]) -> dict[int, Vector]:
        """Go on with one token in each slot whose prompt is read, and return their logits."""
        ids = torch.tensor([[tokens[slot]] for slot in self._slots])
        output = self._run(input_ids=ids, past_key_values=self._rows, **self._rows.inputs())
        self._rows.advance()
        logits = output.logits[:, -1].float().numpy()
        return dict(zip(self._slots, logits, strict=True))

    @torch.inference_mode()  # as the keys and values were made in it
    def free(self, slot: int) -> None:
        """Forget the sequence in a slot, whether or not it was read to its end."""
        self._read.pop(slot, None)
        if slot in self._slots:
            row = self._slots.index(slot)
            self._slots[row] = self._slots[self._rows.remove(row)]
            self._slots.pop()

    def embed(self, tokens: Sequence[int]) -> Iterator[Vector]:
        """Yield the mean of a text's last hidden states, [hidden], so far after each piece."""
        cache, total = DynamicCache(), np.zeros(1, dtype=np.float32)
        for start in range(0, len(tokens), PIECE):
            piece = tokens[start : start + PIECE]
            total = total + self._sum(piece, cache)
            yield total / (start + len(piece))

    @torch.inference_mode()
    def _sum(self, piece: Sequence[int], cache: DynamicCache) -> Vector:
        output = self._model.base_model(
            input_ids=torch.tensor([list(piece)]), past_key_values=cache, use_cache=True
        )
        summed: ndarray = output.last_hidden_state[0].float().sum(0).numpy()
        return summed

    def close(self) -> None:
        """Give the memory back."""
        self._words.close()
        self._rows = Rows(self.slots)
        del self._model

    def _run(self, **inputs: Any) -> Any:
        """Run the model for the logits of the last tokens; families differ in what they take."""
        options = {"use_cache": True, "logits_to_keep": 1, **inputs}
        return self._model(**{name: options[name] for name in options if name in self._known})
