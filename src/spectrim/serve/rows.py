"""The key-value cache of many sequences in one batch, which come and go while others go on.

Sequences stand in rows and end at the same column, as left padding has it: the tokens of one step
are then written side by side into one column, and nothing that is there already is copied. All
model families know left padding, by the mask and the positions that they are given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_COLUMNS = 256  # are made at a time
_SPARE = 64  # are free after sequences were moved, so that they are not moved at each step


@dataclass
class _Place:
    """What all layers share: how long each row's sequence is, and the column behind the last."""

    lengths: list[int] = field(default_factory=list)
    end: int = 0
    width: int = 0

    @property
    def start(self) -> int:
        """Return the first column of the longest sequence."""
        return self.end - max(self.lengths, default=0)


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, columns, dim]."""

    is_sliding = False
    keys: Any  # a tensor once the layer is filled
    values: Any

    def __init__(self, place: _Place, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.rows = place, rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (self._empty(one) for one in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token of every row into the column behind the last; return all up to it."""
        place = self.place
        seen = slice(place.start, place.end + 1)
        both = []
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held[: len(new), :, place.end] = new[:, :, 0]
            both.append(held[: len(new), :, seen])
        return both[0], both[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.place.end - self.place.start

    def get_max_length(self) -> int:
        return -1

    def put(self, row: int, key_states: Tensor, value_states: Tensor) -> None:
        """Write a whole sequence into a row, up to the last column."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.place.end
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held[row, :, end - new.shape[2] : end] = new[0]

    def take(self, row: int, other: int, length: int) -> None:
        """Write another row's sequence over a row's."""
        seen = slice(self.place.end - length, self.place.end)
        for held in (self.keys, self.values):
            held[row, :, seen] = held[other, :, seen]

    def shift(self, start: int, end: int, new_end: int) -> None:
        """Move the columns from start to end so that they end elsewhere, in a wider store if so."""
        both = []
        for held in (self.keys, self.values):
            wider = held if held.shape[2] >= self.place.width else self._empty(held)
            wider[:, :, new_end - (end - start) : new_end] = held[:, :, start:end].clone()
            both.append(wider)
        self.keys, self.values = both

    def _empty(self, like: Tensor) -> Tensor:
        _, heads, _, size = like.shape
        # Zeros, as what masked columns hold is still multiplied by 0, which NaN outlasts.
        return like.new_zeros(self.rows, heads, self.place.width, size)


class Rows(Cache):
    """The cache; rows 0 to ``len(lengths) - 1`` hold sequences."""

    def __init__(self, rows: int) -> None:
        self._place, self._rows = _Place(), rows
        super().__init__(layers=[])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return how many tokens each row has."""
        return tuple(self._place.lengths)

    def add(self, sequence: Cache) -> int:
        """Put a sequence, as a cache of its own, into a new row and return which."""
        length, place = sequence.get_seq_length(), self._place
        self._make_room(length)
        given: list[Any] = sequence.layers
        while len(self.layers) < len(given):
            self.layers.append(_Layer(place, self._rows))
        row = len(place.lengths)
        for own, other in zip(self._own(), given, strict=True):
            if other.is_initialized:
                own.put(row, other.keys, other.values)
        place.lengths.append(length)
        return row

    def remove(self, row: int) -> int:
        """Give a row back; the last row takes its place, and its number is returned."""
        place = self._place
        last = len(place.lengths) - 1
        if row != last:
            for layer in self._filled():
                layer.take(row, last, place.lengths[last])
            place.lengths[row] = place.lengths[last]
        place.lengths.pop()
        if not place.lengths:
            place.end = 0
        return last

    def inputs(self) -> dict[str, Int[Tensor, "rows _"]]:
        """Return the mask and the positions of one more token for each row."""
        place = self._place
        self._make_room(0)
        lengths = torch.tensor(place.lengths)[:, None]
        columns = torch.arange(place.start, place.end + 1)
        return {
            "attention_mask": (columns >= place.end - lengths).long(),
            "position_ids": lengths,
        }

    def advance(self) -> None:
        """Count the tokens that a step has written."""
        self._place.end += 1
        self._place.lengths = [length + 1 for length in self._place.lengths]

    def _make_room(self, least: int) -> None:
        """Have sequences end at this column or behind it, and columns behind that."""
        place = self._place
        start, end = place.start, place.end
        if least <= end < place.width:
            return
        # Where the columns are used up, what is in use moves to the left before more are made.
        new_end = max(least, end - start)
        if new_end + _SPARE > place.width:
            place.width = -(-(new_end + _SPARE) // _COLUMNS) * _COLUMNS
        for layer in self._filled():
            layer.shift(start, end, new_end)
        place.end = new_end

    def _filled(self) -> list[_Layer]:
        return [layer for layer in self._own() if layer.is_initialized]

    def _own(self) -> list[_Layer]:
        return cast(list[_Layer], self.layers)
