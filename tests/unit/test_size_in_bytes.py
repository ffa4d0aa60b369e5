"""Sizes in bytes, and what of a memory is left for weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaConfig

from spectrim.cli import arguments as given
from spectrim.errors import SpectrimError
from spectrim.model.runtime import LLAMA_CPP, TRANSFORMERS, Size, cache_bytes, runtime_bytes
from spectrim.recipe.options import parse_tokens
from spectrim.recipe.recipe import Keep
from spectrim.recipe.sizes import in_bytes, parse_bytes, shown
from spectrim.verbs.for_llama_cpp import Report

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


def test_a_memory_holds_weights_keys_and_values_and_llama_cpp() -> None:
    # Llama 3.2 1B: 32 KiB a token
    assert cache_bytes(LLAMA, 4096, 2) == 4096 * 32 * 1024
    size = Size(memory=2 * 10**9, context=4096, engine=LLAMA_CPP)
    left = size.of(1, LLAMA)
    assert left == 2 * 10**9 - 4096 * 32 * 1024 - runtime_bytes(LLAMA, 4096, 2, LLAMA_CPP)
    assert replace(size, context=8192).of(1, LLAMA) == left - 4096 * 32 * 1024
    assert (Size(part=0.25).of(1000, LLAMA), Size(bytes=77).of(1000, LLAMA)) == (250, 77)
    assert size.counted(LLAMA) == (
        "Of 2.00 GB, 1.50 GB are left for weights: keys and values of 4096 tokens take 134.2 MB, "
        "and llama.cpp, which runs it, 363.3 MB."
    )
    assert Size(bytes=77).counted(LLAMA) is None


def test_what_was_counted_is_told_of_a_single_file_too() -> None:
    report = Report(10**6, {"Q4_K": 3}, 0.1, 0.1, 2.1, 2.0)
    assert str(replace(report, counted="Of 2.00 GB, …")) == f"{report}\nOf 2.00 GB, …"


def test_a_folder_is_run_by_transformers_which_takes_more() -> None:
    size = Size(memory=4 * 10**9, context=4096)
    half = LlamaConfig(**{**LLAMA.to_dict(), "dtype": "bfloat16"})
    # keys, values and activations are of the model's own dtype
    assert size.of(1, half) - size.of(1, LLAMA) > 4096 * 32 * 1024
    assert "and transformers, which runs it, " in (size.counted(half) or "")
    assert size.of(1, half) < replace(size, engine=LLAMA_CPP).of(1, half)
    assert size.of(1, half) < replace(size, context=1024).of(1, half) - 3072 * 32 * 1024


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (Size(memory=400 * 10**6, context=4096), "400.0 MB leave nothing for weights: keys and "),
        (Size(memory=2 * 10**9, context=0), "--context 0 is out of range"),
        (Size(memory=2 * 10**9, context=200000), "--context 200000 is out of range"),
    ],
)
@pytest.mark.parametrize("engine", [TRANSFORMERS, LLAMA_CPP])
def test_what_leaves_nothing_is_refused(size: Size, told: str, engine: str) -> None:
    with pytest.raises(SpectrimError, match=told):
        replace(size, engine=engine).of(1, LLAMA)


@pytest.mark.parametrize("text", ["٦٠٠MB", "६००MB", "6０0MB", "600KB", "9" * 400 + "GB"])
def test_digits_and_units_are_plain_ones(text: str) -> None:
    assert not in_bytes(text)
    with pytest.raises(SpectrimError, match="write a number of bytes with its unit"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["10TB", "600", "MB", "٤٠%", "40 percent"])
def test_a_size_that_cannot_be_read_names_bytes_too(text: str) -> None:
    with pytest.raises(SpectrimError, match="such as '25%' or .*, or bytes, such as '600MB'"):
        given.size(text)
    assert given.size("40%") == Keep(fraction=0.4) and given.size("1KB") == Size(bytes=1000)


@pytest.mark.parametrize("text", ["٤x١٦", "4xx16"])
def test_amounts_have_plain_digits(text: str) -> None:
    with pytest.raises(SpectrimError, match="is no amount of tokens"):
        parse_tokens(text)
