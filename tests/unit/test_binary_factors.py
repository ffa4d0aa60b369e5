"""Factors of signs: scales best for them, flips that lower the loss, and what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from spectrim.cutting.sign_curves import BITS, factor, fitted_loss
from spectrim.formats.binary_low_rank import SIGNS, BinaryLowRank
from spectrim.rounding.binary_factors import (
    BinaryFactors,
    Metric,
    admm,
    binary_factors,
    flipped_both,
    scaled,
)
from spectrim.walk.statistics import Statistics
from tiny_packed import drawn, off

OUT, IN, RANK = 40, 64, 24


def moment(size: int, seed: int) -> Tensor:
    rows = drawn(3 * size, size, seed=seed).float() @ drawn(size, size, seed=seed + 1).float()
    return rows.T @ rows / len(rows)


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    return drawn(OUT, IN).float()


@pytest.fixture(scope="module")
def metric() -> Metric:
    return Metric.of(moment(OUT, 1), moment(IN, 5), OUT)


def loss(matrix: Tensor, metric: Metric, found: BinaryFactors) -> float:
    apart = found.dense() - matrix
    return float(((metric.outputs @ apart @ metric.inputs) * apart).sum())


def test_every_step_lowers_the_loss(matrix: Tensor, metric: Metric) -> None:
    first = admm(matrix, metric, RANK, 5)
    second = scaled(matrix, metric, first)
    third = flipped_both(matrix, metric, second)
    losses = [loss(matrix, metric, one) for one in (first, second, third)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.95 * losses[1]
    for one in (third.outputs, third.inputs):
        assert set(one.unique().tolist()) == {-1.0, 1.0}


def test_scales_are_the_best_for_their_signs(matrix: Tensor, metric: Metric) -> None:
    found = scaled(matrix, metric, admm(matrix, metric, RANK, 5), rounds=30)
    least = loss(matrix, metric, found)
    for name in ("output_scale", "rank_scale", "input_scale"):
        for at in (0, 7):
            for by in (0.97, 1.03):
                scale = getattr(found, name).clone()
                scale[at] *= by
                assert loss(matrix, metric, replace(found, **{name: scale})) > least


def test_more_signs_lose_less_and_so_do_those_of_the_metric(matrix: Tensor, metric: Metric) -> None:
    losses = [loss(matrix, metric, binary_factors(matrix, metric, rank)) for rank in (8, 24, 80)]
    assert losses[0] > 1.5 * losses[1] > 4 * losses[2]  # 80: wider than the matrix itself
    blind = Metric(torch.eye(OUT), torch.eye(IN))
    assert losses[1] < 0.9 * loss(matrix, metric, binary_factors(matrix, blind, 24))


def test_the_format_holds_them_in_a_bit_each(
    matrix: Tensor, metric: Metric, tmp_path: Path
) -> None:
    found = binary_factors(matrix, metric, RANK, steps=5, cycles=1)
    module = BinaryLowRank(IN, OUT, RANK, bias=False).to(torch.bfloat16).requires_grad_(False)
    module.take(found.pieces())
    assert off(module.dense(), found.dense()) < 0.01  # bf16 scales
    x = drawn(3, IN, seed=9)
    expected = x.float() @ module.dense().float().T
    assert off(module(x), expected) < 0.02
    for part in (module.first, module.second):
        part.native.allowed = True
    assert off(module(x), expected) < 0.03  # by the kernels, inputs in eight bits
    save_file(dict(module.state_dict()), tmp_path / "signs.safetensors")
    held = sum(one.nbytes for one in module.state_dict().values())
    shape = (OUT, IN, RANK)
    assert held == BinaryLowRank.stored_bytes(shape, SIGNS, torch.bfloat16)
    assert held == RANK * (OUT + IN) // 8 + 2 * (OUT + IN + RANK)


def test_the_price_falls_with_the_bits_and_counts_the_other_half(matrix: Tensor) -> None:
    halves = [Statistics(10, None, moment(IN, 5), moment(OUT, at)) for at in (1, 3)]
    whole = replace(
        halves[0],
        gradient_moment=sum(one.gradient_moment for one in halves) / 2,
        weighted_moment=halves[0].input_moment,
        even=replace(halves[0], weighted_moment=halves[0].input_moment),
    )
    losses = [fitted_loss(matrix, whole, rank) for rank in (8, 24, 48)]
    assert losses[0] > losses[1] > losses[2] > 0
    own = fitted_loss(matrix, replace(whole, gradient_moment=halves[0].gradient_moment), 24)
    assert losses[1] > own  # its signs were fitted to the even half alone
    assert factor(BITS) == 1
    assert factor(0.4) > 1.4 and 0.3 < factor(BITS + 1) < 0.6


def test_a_matrix_of_zeros_stays_one() -> None:
    made = binary_factors(torch.zeros(24, 16), Metric.of(None, torch.eye(16), 24), 16)
    assert torch.equal(made.dense(), torch.zeros(24, 16))
