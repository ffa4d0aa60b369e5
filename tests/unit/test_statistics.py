"""Streamed second moments against double precision, and the file that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrim.model.architectures import Place, Stack
from spectrim.walk.moments import SecondMoment, matmul_precision
from spectrim.walk.statistics import Statistics, block_statistics, statistics_file
from spectrim.walk.triangles import square, triangle
from spectrim.walk.writing import save


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
    assert found.moment().dtype == torch.float32
    assert sum(band.numel() for band in found.bands) == 64 * 64 * 5 // 8, "the rest is not kept"
    assert off(found.moment(), whole.T @ whole) < 1e-6
    small = (whole.T @ whole)[1:, 1:]
    assert off(found.moment()[1:, 1:], small) < 1e-5, "not drowned by the largest direction"


def test_gradients_are_added_without_their_history() -> None:
    found = SecondMoment.zeros(4)
    found.add(rows(3, 4).requires_grad_())
    assert not found.moment().requires_grad and not found.sum.requires_grad


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
    save(file, tensors, about)
    found = block_statistics(tmp_path, place)
    assert list(found) == list(about)
    held = found["q"].input_moment
    assert found["k"].input_moment is held, "it is in use, so it is not read again"
    assert torch.equal(held, torch.eye(4))
    assert torch.equal(found["k"].gradient_moment, 2 * torch.eye(2))
    assert (found["q"].tokens, found["expert"].tokens) == (9, 0)
    assert found["expert"].input_moment is None and found["expert"].gradient_moment is None


def test_whoever_asks_in_between_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(Stack("model.layers"), 0)
    save(statistics_file(tmp_path, place), {}, {"q": {"tokens": 9}, "k": {"tokens": 5}})
    found: Any = block_statistics(tmp_path, place)
    read = found._read

    class Going:
        """Statistics that a thread drops, at which another thread has its turn."""

        def __del__(self) -> None:
            found["k"]

    def interrupted(name: str) -> Statistics:
        known: Statistics = read(name)
        if name == "q":
            found._last = ("v", Going())
        return known

    monkeypatch.setattr(found, "_read", interrupted)
    assert found["q"].tokens == 9 and found["k"].tokens == 5


@pytest.mark.parametrize("size", [0, 1, 31, 33, 640])
def test_a_triangle_is_the_whole_matrix_to_the_bit(size: int) -> None:
    x = rows(5, size) if size else torch.zeros(5, 0)
    moment = x.T @ x
    moment = moment.triu() + moment.triu(1).T
    kept = triangle(moment)
    assert torch.equal(square(kept, size), moment)
    assert size < 100 or kept.numel() < 0.54 * moment.numel()
