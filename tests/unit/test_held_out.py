"""Prices of cuts and codes are those of other text: the gain of a fit to noise is not in them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spectrim.cutting.held_out import held_out_losses, priced_apart
from spectrim.formats.packed.scales import Grid
from spectrim.methods import Decomposition
from spectrim.methods.loss_aware_neuron_selection import loss_aware_neuron_selection
from spectrim.methods.loss_aware_svd import loss_aware_svd
from spectrim.methods.output_pca import output_pca
from spectrim.rounding.gptq import gptq
from spectrim.walk.moments import Damping, damped, expected_loss, of_all_text
from spectrim.walk.statistics import Statistics

OUT, IN, TOKENS = 20, 28, 160
DAMPING = Damping(1e-4, 1e-2)


def drawn(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and gradients of tokens whose channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, IN, generator=generator) * torch.logspace(0.5, -0.5, IN)
    g = torch.randn(tokens, OUT, generator=generator) * torch.logspace(0.3, -0.3, OUT)
    return x, g


def known(x: Tensor, g: Tensor) -> Statistics:
    weights = g.square().sum(1)
    weighted = (weights[:, None] * x).T @ x / weights.sum()
    return Statistics(len(x), None, x.T @ x / len(x), g.T @ g / len(g), weighted_moment=weighted)


def by_halves(seed: int) -> Statistics:
    """Return the statistics of a short text, also of its even tokens."""
    x, g = drawn(TOKENS, seed)
    squares = g.square().sum(1)
    shares = (0.5, float(squares[::2].sum() / squares.sum()))
    return replace(known(x, g), even=known(x[::2], g[::2]), even_shares=shares)


def matrix() -> Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(7))


def test_the_odd_half_is_what_the_whole_has_beyond_the_even_one() -> None:
    x, g = drawn(TOKENS, 3)
    odd, expected = by_halves(3).odd(), known(x[1::2], g[1::2])
    torch.testing.assert_close(odd.weighted_moment, expected.weighted_moment, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(odd.gradient_moment, expected.gradient_moment, rtol=1e-4, atol=1e-5)
    assert expected.odd() is None


@pytest.mark.parametrize("method", [loss_aware_svd, output_pca])
def test_prices_of_factors_are_nearer_to_those_of_much_text(method: object) -> None:
    weight, much = matrix(), known(*drawn(200_000, 99))
    rank, told, fitted, true = OUT // 2, 0.0, 0.0, 0.0
    for seed in range(8):
        text = by_halves(seed)
        whole: Decomposition = method(weight, text, damping=DAMPING)
        half: Decomposition = method(weight, text.even, damping=DAMPING)
        assert priced_apart(whole)
        losses = held_out_losses(half, weight, text, DAMPING)
        assert losses.shape == whole.losses.shape and losses[-1] < 1e-3 * losses[0]
        left, right = whole.factors(rank)
        told += float(losses[rank])
        fitted += expected_loss(weight, left @ right, text, DAMPING)
        true += expected_loss(weight, left @ right, much, DAMPING)
    assert abs(told / true - 1) < min(0.1, abs(fitted / true - 1)), (told, fitted, true)


def test_prices_of_narrower_mlps_are_nearer_to_those_of_much_text() -> None:
    maps = {"up": torch.ones(IN, 4), "down": matrix()}
    much, width = known(*drawn(200_000, 99)), IN // 2
    told, fitted, true = 0.0, 0.0, 0.0
    for seed in range(8):
        text = by_halves(seed)
        half = loss_aware_neuron_selection(maps, {"down": text.even}, damping=DAMPING)
        whole = loss_aware_neuron_selection(maps, {"down": text}, damping=DAMPING)
        assert priced_apart(whole)
        losses = held_out_losses(half, maps["down"], text, DAMPING)
        assert losses.shape == whole.losses.shape and losses[-1] == 0
        told, fitted = told + float(losses[width]), fitted + float(whole.losses[width])
        true += float(_cost(whole, width, much))
    assert abs(told / true - 1) < min(0.1, abs(fitted / true - 1)), (told, fitted, true)


def _cost(whole: Decomposition, width: int, much: Statistics) -> float:
    """Return what a width costs on much text, its neurons and their root as fitted."""
    root, order = whole.pieces["down.root"].double(), whole.pieces["down.order"]
    made_up = torch.linalg.solve(root[:width, :width].T, root[width:, :width].T).T  # [left, kept]
    columns = whole.pieces["down.columns"].double()
    kept = torch.zeros_like(columns)
    kept[:, :width] = columns[:, :width] + columns[:, width:] @ made_up
    back = order.argsort()
    return expected_loss(columns[:, back], kept[:, back], much, DAMPING)


def test_prices_of_codes_are_nearer_to_those_of_much_text() -> None:
    weight, much, grid = matrix(), known(*drawn(200_000, 99)), Grid(2, 0, symmetric=False)

    def rounded(text: Statistics) -> Tensor:
        moment = damped(text.loss_inputs, 1e-2)
        return gptq(weight, moment, grid, torch.float32).dequantize(0)

    told, fitted, true = 0.0, 0.0, 0.0
    for seed in range(8):
        text = by_halves(seed)
        half, whole = rounded(text.even), rounded(text)
        prices = [expected_loss(weight, half, one, DAMPING) for one in (text.even, text.odd())]
        told += of_all_text(*prices)
        fitted += expected_loss(weight, whole, text, DAMPING)
        true += expected_loss(weight, whole, much, DAMPING)
    assert abs(told / true - 1) < min(0.1, abs(fitted / true - 1)), (told, fitted, true)
