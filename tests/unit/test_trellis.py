"""Columns as paths through a trellis: the best path, errors passed on, and what they leave."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectrim.cutting.trellis_curves import squared_error
from spectrim.errors import SpectrimError
from spectrim.formats.packed.trellis_matrix import (
    SPREAD,
    STATE_BITS,
    TrellisMatrix,
    column_bytes,
    path_codes,
)
from spectrim.rounding import trellis
from spectrim.rounding.trellis import Feedback, PathMatrix, paths, weights_of
from tiny_packed import drawn


def coded(
    matrix: Tensor, rate: int, inputs: Tensor | None = None, gradients: Tensor | None = None
) -> PathMatrix:
    moment = torch.eye(matrix.shape[1]) if inputs is None else inputs
    return paths(matrix, Feedback.of(moment), gradients, rate, torch.bfloat16)


def moment(size: int) -> Tensor:
    rows = drawn(4 * size, size, seed=5).float() @ drawn(size, size, seed=6).float()
    return rows.T @ rows / len(rows)


def unpacked(found: PathMatrix, rate: int) -> Tensor:
    """Return what the format makes of the pieces."""
    rows, columns = found.values.shape
    held = TrellisMatrix(rows, columns, rate)
    held.take(found.pieces())
    return held.dense().detach()


@pytest.mark.parametrize("rate", [8, 11, 32, 80])
def test_the_format_gives_the_values_that_were_chosen(rate: int) -> None:
    matrix = drawn(37, 20).float()
    found = coded(matrix, rate)
    torch.testing.assert_close(unpacked(found, rate), found.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [8, 16, 32])
def test_no_other_path_is_nearer(rate: int) -> None:
    rows = {8: 9, 16: 5, 32: 3}[rate]  # 2^16 paths, all of them
    bits = (rows - 1) * rate // 16 + STATE_BITS
    matrix, felt = drawn(rows, 1).float(), torch.diag(torch.linspace(1, 3, rows))
    found = coded(matrix, rate, gradients=felt)
    run = torch.arange(2**bits)
    places = torch.arange(column_bytes(rows, rate))
    every = (run[:, None] >> 8 * places & 255).to(torch.uint8)
    values = path_codes(every, rows, rate) * found.row_scale * found.column_scale
    weights = weights_of(found.row_scale, felt) / found.row_scale.square()
    losses = ((values - matrix.T).square() * weights).sum(1)
    own = ((found.values - matrix).square() * weights[:, None]).sum()
    assert own <= losses.min() * (1 + 1e-4) and losses.median() > 3 * own


@pytest.mark.parametrize("rate", [12, 32, 56])
def test_errors_of_gaussian_numbers_are_those_that_prices_count_with(rate: int) -> None:
    matrix = drawn(1536, 32).float()
    found = coded(matrix, rate)
    left = float((found.values - matrix).square().sum() / matrix.square().sum())
    assert 0.9 < left / squared_error(rate) < 1.1


def test_errors_are_passed_on_to_columns_behind() -> None:
    matrix, inputs = drawn(64, 48).float(), moment(48)

    def loss(found: PathMatrix) -> float:
        apart = found.values - matrix
        return float(((apart @ inputs) * apart).sum())

    assert loss(coded(matrix, 32, inputs)) < 0.7 * loss(coded(matrix, 32))


def test_rows_that_the_loss_feels_are_nearer() -> None:
    matrix, felt = drawn(64, 16).float(), torch.ones(64)
    felt[::2] = 30
    even, weighted = coded(matrix, 32), coded(matrix, 32, gradients=torch.diag(felt))
    errors = [(one.values - matrix).square().mean(1) for one in (even, weighted)]
    assert errors[1][::2].mean() < 0.8 * errors[0][::2].mean()
    assert errors[1][1::2].mean() > errors[0][1::2].mean()


def test_rows_and_columns_of_zeros_stay_zero() -> None:
    matrix = drawn(40, 24).float()
    matrix[3], matrix[:, 5] = 0, 0
    found = coded(matrix, 32)
    assert not found.values[3].any() and not found.values[:, 5].any()
    assert found.values.isfinite().all() and not unpacked(found, 32)[3].any()
    error = (found.values - matrix).square().sum() / matrix.square().sum()
    assert error < 0.12
    nothing = coded(torch.zeros(8, 4), 32, gradients=torch.zeros(8, 8))
    assert not nothing.values.any() and nothing.values.isfinite().all()


def test_the_same_matrix_has_the_same_paths() -> None:
    matrix, inputs = drawn(33, 20).float(), moment(20)
    one, other = coded(matrix, 37, inputs), coded(matrix, 37, inputs)
    assert all(torch.equal(one.pieces()[name], other.pieces()[name]) for name in one.pieces())


def test_the_spread_is_that_of_all_codes() -> None:
    states = torch.tensor(list(product(range(256), range(16))), dtype=torch.uint8)
    codes = path_codes(states, 1, 16)
    assert codes.std() == pytest.approx(SPREAD, rel=0.02) and abs(codes.mean()) < 5


def test_without_kernels_a_search_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trellis, "library", lambda: None)
    with pytest.raises(SpectrimError, match="searched by the compiled kernels.*leave out trellis"):
        coded(drawn(8, 4).float(), 32)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_threads_that_are_done_leave_no_memory_behind() -> None:
    matrix = drawn(4096, 1).float()  # 16 MiB while its paths are searched

    def held() -> int:
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    coded(matrix, 16)
    before = held()
    for _ in range(6):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(coded, matrix, 16).result()
    assert held() - before < 48 << 20
