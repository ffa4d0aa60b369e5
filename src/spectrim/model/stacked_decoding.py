"""All blocks of a model in one call of the kernels, while a sequence is written token by token.

Between two blocks Python takes longer than the kernels do for a block of a small model. Keys and
values of all blocks lie in one buffer with room for more tokens, of which the cache's own tensors
are views: whatever transformers does with them, it does as before.
"""

from __future__ import annotations

import ctypes
from itertools import chain
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from spectrim.kernels.library import Library, checked, library
from spectrim.kernels.structures import Stack, readable
from spectrim.model.block_decoding import PLAIN_ATTENTION, Decoding, inner_modules

MODELS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
ROOM = 256  # tokens by which a buffer is longer than what is in it, or by half of that


class StackedDecoding:
    """The forward of a model without its head: by one call for one token, else its own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._rooms: WeakKeyDictionary[DynamicCache, Room] = WeakKeyDictionary()
        self._watched: Watched | None = None
        self._made: list[Any] = []  # what belongs to the structures of the blocks
        self._pointers: Any = None

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **told: Any,
    ) -> Any:
        """Return the hidden states behind the last norm, and the cache."""
        call, cache = library(), past_key_values
        one = input_ids is not None and input_ids.shape == (1, 1) and inputs_embeds is None
        if one and call is not None and self._fits(attention_mask, cache, told):
            hidden = self.model.embed_tokens(input_ids)
            if readable([hidden]) and (room := self._room(cache)) is not None:
                if position_ids is None:
                    position_ids = torch.tensor([[room.length]])
                angles = self.model.rotary_emb(hidden, position_ids=position_ids)
                if readable(angles) and angles[0].numel() == room.buffer.shape[-1]:
                    hidden = self._decoded(call, room, hidden, angles)
                    room.hand_out(cache)
                    return BaseModelOutputWithPast(
                        last_hidden_state=self.model.norm(hidden), past_key_values=cache
                    )
        return type(self.model).forward(
            self.model, input_ids=input_ids, attention_mask=attention_mask,
            position_ids=position_ids, past_key_values=cache, inputs_embeds=inputs_embeds, **told,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: no addresses, and no caches."""
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy."""
        StackedDecoding.__init__(self, state["model"])

    def _fits(self, mask: Any, cache: Any, told: dict[str, Any]) -> bool:
        """Return whether this call is the plain one: one token behind a cache, nothing masked."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.model.training:
            return False
        if type(cache) is not DynamicCache or cache.offloading:
            return False
        config, uses = self.model.config, told.get("use_cache")
        if config.output_hidden_states or config.output_attentions or uses is False:
            return False
        rest = [one for name, one in told.items() if name not in ("use_cache", "return_dict")]
        if any(one is not None and one is not False for one in rest):
            return False
        if told.get("return_dict") is False or config._attn_implementation not in PLAIN_ATTENTION:
            return False
        plain = mask is None or (
            isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == 1 and bool(mask.all())
        )
        return plain and self._all_blocks()

    def _all_blocks(self) -> bool:
        """Return whether the kernels compute all blocks, and have their structures up to date."""
        if self._watched is None or not self._watched.same(self.model.layers):
            self._watched, self._pointers = Watched(self.model.layers), None
            blocks = list(self.model.layers)[: self.model.config.num_hidden_layers]
            found = [_made(block, at) for at, block in enumerate(blocks)]
            if None not in found and len({_heads(one) for one in found}) == 1:
                self._made = found
                self._pointers = (ctypes.c_void_p * len(found))(
                    *(ctypes.addressof(one.structure) for one in found)
                )
        return self._pointers is not None and not self._watched.hooked()

    def _room(self, cache: DynamicCache) -> Room | None:
        """Return a buffer with what the cache holds and room for a token; None if it cannot be."""
        found = self._rooms.get(cache)
        if found is None or not found.holds(cache):
            found = room_for(cache, len(self._made), *_heads(self._made[0])[1:])
            if found is not None:
                self._rooms[cache] = found
        return found

    def _decoded(
        self, call: Library, room: Room, hidden: Tensor, angles: tuple[Tensor, Tensor]
    ) -> Tensor:
        cosine, sine = angles
        buffer, out = room.buffer, torch.empty_like(hidden)
        stack = Stack(
            ctypes.addressof(self._pointers), buffer.data_ptr(), buffer.shape[3], len(self._made)
        )
        checked(call.stack(
            ctypes.byref(stack), hidden.data_ptr(), cosine.data_ptr(), sine.data_ptr(),
            room.length + 1, out.data_ptr(), torch.get_num_threads(),
        ))  # fmt: skip
        room.length += 1
        return out


class Room:
    """Keys and values of all blocks in one buffer, bf16 [2 blocks, 1, heads, tokens, head]."""

    def __init__(self, buffer: Tensor, length: int) -> None:
        self.buffer, self.length = buffer, length
        self._views: list[Tensor] = []

    def holds(self, cache: DynamicCache) -> bool:
        """Return whether the cache's tensors are those handed out last, and one more fits.

        What lies behind them was never written for anyone, so nobody's tensors change.
        """
        own = _tensors(cache)
        same = len(self._views) == 2 * len(cache.layers) and all(map(is_, own, self._views))
        return same and self.length < self.buffer.shape[3]

    def hand_out(self, cache: DynamicCache) -> None:
        """Give the cache views of all that is in the buffer."""
        self._views = list(self.buffer[:, :, :, : self.length].unbind(0))
        layers: Any = cache.layers
        for at, layer in enumerate(layers):
            layer.keys, layer.values = self._views[2 * at : 2 * at + 2]


def room_for(cache: DynamicCache, blocks: int, heads: int, head: int) -> Room | None:
    """Return a buffer with a copy of a cache; None where that is no plain one of this shape."""
    layers: Any = cache.layers
    plain = len(layers) == blocks and all(
        type(one) is DynamicLayer and one.is_initialized for one in layers
    )
    if not plain:
        return None
    tensors = _tensors(cache)
    length = cache.get_seq_length()
    shape = (1, heads, length, head)
    if not length or any(one.shape != shape or one.dtype != torch.bfloat16 for one in tensors):
        return None
    room = length + max(ROOM, length // 2)
    buffer = torch.empty(2 * blocks, 1, heads, room, head, dtype=torch.bfloat16)
    torch.stack(tensors, out=buffer[:, :, :, :length])
    return Room(buffer, length)


def _tensors(cache: DynamicCache) -> list[Tensor]:
    """Return keys and values of the first block, then of the next ones."""
    layers: Any = cache.layers
    return [one for layer in layers for one in (layer.keys, layer.values)]


class Watched:
    """All that blocks are made of, so that a change of any of it is seen."""

    def __init__(self, blocks: Any) -> None:
        modules = inner_modules(blocks)
        tables = [(one._modules, one._parameters, one._buffers) for one in [blocks, *modules]]
        self._held = [one for each in tables for one in each if one]
        self._hooks = [
            one for module in modules for one in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._own = [one.__dict__ for one in blocks]
        self._forwards = [one.get("forward") for one in self._own]
        self._blocks = blocks
        self._parts = list(chain.from_iterable(map(dict.values, self._held)))
        self._tensors = [one for one in self._parts if isinstance(one, Tensor)]
        self._places = list(map(Tensor.data_ptr, self._tensors))

    def same(self, blocks: Any) -> bool:
        """Return whether modules, tensors, their places and the blocks' forwards are as they were.

        It is asked for every token, so it goes through the tables without a line of Python each.
        """
        parts = list(chain.from_iterable(map(dict.values, self._held)))
        return (
            blocks is self._blocks
            and len(parts) == len(self._parts)
            and all(map(is_, parts, self._parts))
            and list(map(Tensor.data_ptr, self._tensors)) == self._places
            and [one.get("forward") for one in self._own] == self._forwards
        )

    def hooked(self) -> bool:
        """Return whether anyone listens to a module in a block."""
        return any(self._hooks)


def _made(block: Any, place: int) -> Any:
    """Return a block's structure with its tensors, None where it is computed otherwise."""
    decoding = block.__dict__.get("forward")
    attention: Any = getattr(block, "self_attn", None)
    if not isinstance(decoding, Decoding) or getattr(attention, "layer_idx", None) != place:
        return None
    # Mistral's attention has no window of its own: the model's mask makes it, by the config.
    window = getattr(attention.config, "sliding_window", None)
    if getattr(attention, "sliding_window", window) is not None:
        return None
    return None if decoding.pointer() is None else decoding.kept.found


def _heads(made: Any) -> tuple[int, int, int]:
    """Return the width of a block, and how many heads of keys of what size it has."""
    structure = made.structure
    return structure.hidden, structure.key_heads, structure.head
