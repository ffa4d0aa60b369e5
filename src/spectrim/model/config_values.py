"""Values of config.json that no model can have, found before memory is taken for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from spectrim.errors import SpectrimError
from spectrim.model.architectures import Architecture, architecture_of
from spectrim.model.tensor_files import Entry

_WIDTHS = (
    "hidden_size", "vocab_size", "head_dim", "d_kv", "num_key_value_heads", "num_kv_heads",
    "num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "word_embed_proj_dim",
)  # fmt: skip
_NORMS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
_ROPE = (
    "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor",
    "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor",
    "short_factor", "long_factor",
)  # fmt: skip


def refuse_values(
    folder: Path, config: PretrainedConfig, entries: Mapping[str, Entry], shared: int | None
) -> None:
    """Raise SpectrimError for the first value of a config that no model can have.

    Sizes are held against the tensors, as a model is built to find out where they differ: that
    takes memory for whatever the config asks for.

    entries: the tensors in the folder's files. shared: how many blocks are stored with another one;
        None for an ordinary model, whose matrices are stored as they are.
    """
    reasons = _reasons(config, architecture_of(config), entries, shared)
    if (reason := next(reasons, None)) is not None:
        raise SpectrimError(f"{folder / 'config.json'} makes no model ({reason}); put it right")


def refuse_ends(ends: Any) -> None:
    """Raise ValueError where a token at which generation stops is no token's number.

    A number beyond the vocabulary is none that a model writes, and does no harm.

    ends: a token's number, several in a list, or None.
    """
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not (type(end) is int and end >= 0):
            raise ValueError(f"no token has the number {end!r}")


def _reasons(
    config: PretrainedConfig,
    architecture: Architecture,
    entries: Mapping[str, Entry],
    shared: int | None,
) -> Iterator[str]:
    """Yield what is wrong, most basic first."""
    for stack in architecture.stacks:
        blocks, most = getattr(config, stack.count), len(entries) + (shared or 0)
        if not 1 <= blocks <= most:  # each has one tensor at least
            yield f"{stack.count} is {blocks}, with {len(entries)} tensors in the files"
    largest = max((prod(entry.shape) for entry in entries.values()), default=0)
    for name, value in _widths(config, architecture):
        if not 1 <= value <= largest * (1 if shared is None else 8):  # codes of a bit and more
            yield f"{name} is {value}, with at most {largest} numbers in a tensor of the files"
    table = config.vocab_size * (getattr(config, "word_embed_proj_dim", 0) or config.hidden_size)
    if shared is None and table > largest:
        yield (
            f"vocab_size and hidden_size make an embedding of {table} numbers, with at most "
            f"{largest} in a tensor of the files"
        )
    if (longest := getattr(config, "max_position_embeddings", None)) is not None and longest < 1:
        yield f"max_position_embeddings is {longest}"
    yield from _numbers(config)


def _widths(config: PretrainedConfig, architecture: Architecture) -> Iterator[tuple[str, int]]:
    names = [name for stack in architecture.stacks for name in (stack.width, stack.heads)]
    for name in dict.fromkeys((*_WIDTHS, *names)):
        if (value := getattr(config, name, None)) is not None:
            yield name, value


def _numbers(config: PretrainedConfig) -> Iterator[str]:
    """Yield what is wrong with norms and rotary positions."""
    for name in _NORMS:
        value = getattr(config, name, 0.0)
        if not (_is_number(value) and 0 <= value <= 1):
            yield f"{name} is {value!r}, expected 0 to 1"
    yield from _rope(getattr(config, "rope_parameters", None) or {})


def _rope(said: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with rotary positions; families with windows say it once a kind."""
    for name, value in said.items():
        if isinstance(value, Mapping):
            yield from _rope(value)
        elif name in _ROPE and value is not None:
            several = value if isinstance(value, list) else [value]
            if not all(_is_number(one) and one > 0 for one in several):
                yield f"{name} of its rotary positions is {value!r}, expected a number above 0"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
