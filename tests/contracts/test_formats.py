"""What every format of two factors promises beyond test_cuts.py: it holds any product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.formats import FactoredLinear, formats, from_factors, low_rank_formats

NAMES = low_rank_formats()
SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24), st.integers(0, 999))


def factors(out: int, inner: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return left, torch.randn(rank, inner, generator=generator, dtype=torch.float64)


def test_there_are_formats() -> None:
    assert {"low_rank", "pivoted"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(shape=SHAPES)
@settings(max_examples=40, deadline=None)
def test_holds_the_product_of_its_factors(name: str, shape: tuple[int, int, int, int]) -> None:
    out, inner, rank, seed = shape
    rank = min(rank, out, inner)
    left, right = factors(out, inner, rank, seed)
    module = from_factors(name, left, right, None, torch.float64)
    torch.testing.assert_close(module.dense(), left @ right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_equals_dense(name: str, bias: bool) -> None:
    left, right = factors(10, 7, 4, 0)
    b = torch.arange(10, dtype=torch.float64) if bias else None
    module = from_factors(name, left, right, b, torch.float64)
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    expected = x @ (left @ right).T + (0 if b is None else b)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.left() @ module.right(), module.dense())


@pytest.mark.parametrize("name", NAMES)
def test_stored_is_what_the_file_holds(name: str, tmp_path: Path) -> None:
    module = from_factors(name, *factors(12, 9, 5, 1), None, torch.bfloat16)
    save_file(dict(module.state_dict()), tmp_path / "m.safetensors")
    held = load_file(tmp_path / "m.safetensors")
    assert module.stored() == sum(t.numel() for t in held.values() if t.is_floating_point())
    assert type(module).bytes(12, 9, 5, torch.bfloat16) == sum(
        t.numel() * t.element_size() for t in held.values()
    )


@pytest.mark.parametrize("name", NAMES)
def test_save_load_is_bit_equal(name: str, tmp_path: Path) -> None:
    bias = torch.randn(12)
    module = from_factors(name, *factors(12, 9, 5, 2), bias, torch.float32)
    save_file(dict(module.state_dict()), tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty: FactoredLinear = formats.get(name)(**module.shape())
    empty.load_state_dict(load_file(tmp_path / "m.safetensors"), assign=True)
    x = torch.randn(4, 9)
    assert torch.equal(empty(x), module(x))


@pytest.mark.parametrize("name", NAMES)
def test_same_factors_give_same_bits_and_are_contiguous(name: str) -> None:
    one, other = (from_factors(name, *factors(12, 9, 5, 3), None, torch.float32) for _ in "ab")
    for key, tensor in one.state_dict().items():
        assert tensor.is_contiguous()
        assert torch.equal(tensor, other.state_dict()[key])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_factor(name: str) -> None:
    module = from_factors(name, *factors(12, 9, 5, 4), torch.zeros(12), torch.float32)
    module(torch.randn(3, 9)).square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_size_grows_with_rank(name: str) -> None:
    sizes = [formats.get(name).numbers(20, 15, rank) for rank in range(1, 16)]
    assert sizes == sorted(set(sizes))


def test_pivoted_is_smaller_than_dense_below_full_rank_and_low_rank_is_not() -> None:
    assert all(formats.get("pivoted").numbers(20, 15, rank) < 300 for rank in range(1, 15))
    assert formats.get("low_rank").numbers(20, 15, 9) > 300


def test_pivoted_coefficients_stay_small() -> None:
    """Badly scaled factors must not lead to coefficients that bf16 or int8 could not hold."""
    left, right = factors(64, 48, 24, 5)
    left = left * torch.logspace(0, -6, 24, dtype=torch.float64)
    module = from_factors("pivoted", left, right, None, torch.float64)
    assert module.coefficients.abs().max() < 4  # type: ignore[union-attr]
