"""What a model needs in memory beside its weights: the cache of keys and values, and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.recipe.sizes import shown

TRANSFORMERS, LLAMA_CPP = "transformers", "llama.cpp"
CONTEXT = 4096  # tokens, where none are asked for
HALF, SINGLE = 2, 4  # bytes of a number

# llama.cpp reads a prompt in pieces and keeps the logits of one.
PROCESS = 64 * 2**20  # bytes: its program, threads and tables
PROMPT = 512  # tokens of a piece

# transformers reads a prompt at once. Measured with SmolLM2-135M, dense and in 4 bits.
PYTHON = 600 * 2**20  # bytes: Python, PyTorch, transformers and their threads
ACTIVATIONS = 6  # numbers of each token for each dimension of hidden states and MLP


@dataclass(frozen=True)
class Size:
    """How large a model may be: bytes, a part of the dense one, or what a memory leaves."""

    bytes: int | None = None
    part: float | None = None
    memory: int | None = None
    context: int | None = None
    """Tokens of keys and values that the memory holds too; by default 4096, or all it reads."""
    engine: str = TRANSFORMERS
    """What runs the model in that memory."""

    def of(self, whole: int, config: Any) -> int:
        """Return the bytes that weights may take; whole: what the dense model's take.

        Raises:
            SpectrimError: the memory leaves nothing for weights.
        """
        if self.memory is not None:
            return self.memory - _beside(self.memory, config, self.context, self.engine).bytes
        return int(self.part * whole) if self.part is not None else int(self.bytes or 0)

    def counted(self, config: Any) -> str | None:
        """Return in a sentence what of a memory was not left for weights; None without one."""
        if self.memory is None:
            return None
        beside = _beside(self.memory, config, self.context, self.engine)
        left = shown(self.memory - beside.bytes)
        return f"Of {shown(self.memory)}, {left} are left for weights: {beside}."

    def __str__(self) -> str:
        """Return the size as one would write it."""
        if self.memory is not None:
            return f"a memory of {shown(self.memory)}"
        return f"{100 * self.part:g}%" if self.part is not None else shown(self.bytes or 0)


@dataclass(frozen=True)
class Beside:
    """What a running model needs beside its weights, in bytes."""

    context: int
    cache: int
    runtime: int
    engine: str

    @property
    def bytes(self) -> int:
        """Return all of it."""
        return self.cache + self.runtime

    def __str__(self) -> str:
        """Return what takes how much."""
        return (
            f"keys and values of {self.context} tokens take {shown(self.cache)}, and "
            f"{self.engine}, which runs it, {shown(self.runtime)}"
        )


def _beside(memory: int, config: Any, context: int | None, engine: str) -> Beside:
    """Return what of a memory is not for weights.

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
    number = HALF if engine == LLAMA_CPP else getattr(text.dtype, "itemsize", SINGLE)
    cache = cache_bytes(text, context, number)
    found = Beside(context, cache, runtime_bytes(text, context, number, engine), engine)
    if found.bytes >= memory:
        raise SpectrimError(
            f"{shown(memory)} leave nothing for weights: {found}; give more memory, or a shorter "
            "--context"
        )
    return found


def cache_bytes(config: Any, context: int, number: int) -> int:
    """Return the bytes of keys and values; config: of the language model, number: bytes of one."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * number * config.num_hidden_layers * kept * width * context)


def runtime_bytes(config: Any, context: int, number: int, engine: str) -> int:
    """Return the bytes of an engine's own work space, logits and activations of a prompt in it."""
    if engine == LLAMA_CPP:
        return int(PROCESS + SINGLE * PROMPT * (config.vocab_size + 8 * config.hidden_size))
    neurons = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(PYTHON + number * context * ACTIVATIONS * (config.hidden_size + neurons))
