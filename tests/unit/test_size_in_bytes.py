"""Sizes in bytes, and what of a memory is left for weights."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from spectrim.errors import SpectrimError
from spectrim.model.runtime import Size, cache_bytes, runtime_bytes, weights_within
from spectrim.recipe.sizes import in_bytes, parse_bytes, shown

LLAMA = LlamaConfig(
    hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=131072, head_dim=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [("600MB", 600_000_000), ("1.5GiB", 1610612736), (" 2 gb ", 2 * 10**9), ("512KiB", 524288),
     ("100B", 100)],
)  # fmt: skip
def test_sizes_are_read(text: str, size: int) -> None:
    assert in_bytes(text)
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["40%", "40% of linear bytes", "600", "MB", "6 Mb of bytes"])
def test_parts_are_no_bytes(text: str) -> None:
    assert not in_bytes(text)
    with pytest.raises(SpectrimError, match="cannot read fits"):
        parse_bytes(text, "fits")


@pytest.mark.parametrize("text", ["0MB", "-3GB"])
def test_nothing_is_no_size(text: str) -> None:
    with pytest.raises(SpectrimError, match="out of range"):
        parse_bytes(text)


def test_sizes_are_shown() -> None:
    assert (shown(90_000_000), shown(1.5e9)) == ("90.0 MB", "1.50 GB")


def test_a_memory_holds_weights_keys_and_values_and_the_runtime() -> None:
    # Llama 3.2 1B: 32 KiB a token
    assert cache_bytes(LLAMA, 4096) == 4096 * 32 * 1024
    left = weights_within(2 * 10**9, LLAMA, 4096)
    assert left == 2 * 10**9 - 4096 * 32 * 1024 - runtime_bytes(LLAMA)
    assert weights_within(2 * 10**9, LLAMA, 8192) == left - 4096 * 32 * 1024
    assert Size(memory=2 * 10**9, context=4096).of(1, LLAMA) == left
    assert (Size(part=0.25).of(1000, LLAMA), Size(bytes=77).of(1000, LLAMA)) == (250, 77)


def test_what_leaves_nothing_is_refused() -> None:
    with pytest.raises(SpectrimError, match="leave nothing for weights"):
        weights_within(400 * 10**6, LLAMA, 4096)
    with pytest.raises(SpectrimError, match="--context 0 is out of range"):
        weights_within(2 * 10**9, LLAMA, 0)
    with pytest.raises(SpectrimError, match="--context 200000 is out of range"):
        weights_within(2 * 10**9, LLAMA, 200000)
