"""What a model needs in memory beside its weights: the cache of keys and values, and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.recipe.sizes import shown

PROCESS = 64 * 2**20  # bytes: llama.cpp's program, its threads and its tables
PROMPT = 512  # tokens: of a prompt that llama.cpp reads at once
CONTEXT = 4096  # tokens, where none are asked for
HALF, SINGLE = 2, 4  # bytes of a number


@dataclass(frozen=True)
class Size:
    """How large a model may be: bytes, a part of the dense one, or what a memory leaves."""

    bytes: int | None = None
    part: float | None = None
    memory: int | None = None
    context: int | None = None
    """Tokens of keys and values that the memory holds too; by default 4096, or all it reads."""

    def of(self, whole: int, config: Any) -> int:
        """Return the bytes that weights may take; whole: what the dense model's take.

        Raises:
            SpectrimError: the memory leaves nothing for weights.
        """
        if self.memory is not None:
            return weights_within(self.memory, config, self.context)
        return int(self.part * whole) if self.part is not None else int(self.bytes or 0)


def weights_within(memory: int, config: Any, context: int | None = None) -> int:
    """Return how many bytes weights may take so that a model runs in a memory.

    memory: bytes for all of it. context: tokens that the cache of keys and values is to hold, by
        default 4096, or as many as the model reads.

    Raises:
        SpectrimError: the context is longer than the model reads, or leaves nothing for weights.
    """
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    context = min(CONTEXT, longest or CONTEXT) if context is None else context
    if context < 1 or (longest and context > longest):
        raise SpectrimError(
            f"--context {context} is out of range; the model reads 1 to {longest} tokens"
        )
    taken = cache_bytes(text, context) + runtime_bytes(text)
    if taken >= memory:
        raise SpectrimError(
            f"{shown(memory)} leave nothing for weights: keys and values of {context} tokens and "
            f"the runtime take {shown(taken)}; give more memory, or a shorter --context"
        )
    return memory - taken


def cache_bytes(config: Any, context: int) -> int:
    """Return the bytes of keys and values in half precision; config: of the language model."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * HALF * config.num_hidden_layers * kept * width * context)


def runtime_bytes(config: Any) -> int:
    """Return the bytes of llama.cpp's own work space: logits and activations of a prompt."""
    wide = config.vocab_size + 8 * config.hidden_size
    return int(PROCESS + SINGLE * PROMPT * wide)
