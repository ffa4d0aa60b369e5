"""Streamed second moments against double precision, and the file that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from spectrim.model.architectures import Place, Stack
from spectrim.walk.moments import SecondMoment, matmul_precision
from spectrim.walk.statistics import block_statistics, statistics_file


def rows(count: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows as a network has them: a mean, and one direction far larger than the others."""
    drawn = torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + 0.3
    drawn[:, 0] *= 30
    return drawn.to(dtype)


def off(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


def streamed(parts: list[Tensor]) -> SecondMoment:
    found = SecondMoment.zeros(parts[0].shape[1])
    for part in parts:
        found.add(part)
    return found


@given(size=st.integers(1, 21), counts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_size_in_any_parts_gives_the_whole_symmetric_sum(size: int, counts: list[int]) -> None:
    parts = [rows(count, size, seed) for seed, count in enumerate(counts)]
    whole = torch.cat(parts).double()
    found = streamed(parts)
    assert found.tokens == sum(counts)
    moment = found.moment()
    assert torch.equal(moment, moment.T)
    torch.testing.assert_close(moment.double(), whole.T @ whole, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.sum.double(), whole.sum(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_sum_stays_close_to_double_precision(dtype: torch.dtype) -> None:
    """In bf16 the products of two numbers are exact in float32, so nothing is lost to rounding."""
    parts = [rows(256, 64, seed, dtype) for seed in range(32)]
    whole = torch.cat(parts).double()
    found = streamed(parts)
    assert found.total.dtype == torch.float32
    assert off(found.moment(), whole.T @ whole) < 1e-6
    small = (whole.T @ whole)[1:, 1:]
    assert off(found.moment()[1:, 1:], small) < 1e-5, "not drowned by the largest direction"


def test_gradients_are_added_without_their_history() -> None:
    found = SecondMoment.zeros(4)
    found.add(rows(3, 4).requires_grad_())
    assert not found.total.requires_grad and not found.sum.requires_grad


@pytest.mark.parametrize("fails", [False, True])
def test_the_precision_of_products_is_put_back(fails: bool) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        with matmul_precision("medium"):
            assert torch.get_float32_matmul_precision() == "medium"
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert torch.get_float32_matmul_precision() == before


def test_sites_with_one_input_share_it_in_the_file_and_in_memory(tmp_path: Path) -> None:
    place = Place(Stack("model.layers"), 5)
    about = {
        "q": {"tokens": 9, "input": "q"},
        "k": {"tokens": 9, "input": "q"},
        "expert": {"tokens": 0},
    }
    tensors = {
        "q.input_moment": torch.eye(4),
        "q.input_mean": torch.ones(4),
        "q.gradient_moment": torch.eye(3),
        "k.gradient_moment": 2 * torch.eye(2),
    }
    file = statistics_file(tmp_path, place)
    assert file == tmp_path / "model.layers.5.safetensors"
    save_file(tensors, file, metadata={"sites": json.dumps(about)})
    found = block_statistics(tmp_path, place)
    assert found["q"].input_moment is found["k"].input_moment
    assert torch.equal(found["k"].gradient_moment, 2 * torch.eye(2))
    assert (found["q"].tokens, found["expert"].tokens) == (9, 0)
    assert found["expert"].input_moment is None and found["expert"].gradient_moment is None
