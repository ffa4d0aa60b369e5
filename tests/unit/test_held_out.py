"""Prices of cuts and codes are those of other text: the gain of a fit to noise is not in them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spectrim.cutting.held_out import PARTS, held_out_prices, priced_apart, scaled
from spectrim.formats import make_format
from spectrim.formats.packed.scales import Grid
from spectrim.methods import Decomposition
from spectrim.methods.loss_aware_neuron_selection import loss_aware_neuron_selection
from spectrim.methods.loss_aware_shared_basis import loss_aware_shared_basis
from spectrim.methods.loss_aware_svd import loss_aware_svd
from spectrim.methods.output_pca import output_pca
from spectrim.methods.query_key import query_key
from spectrim.methods.shared_basis import shared_basis
from spectrim.methods.value_output import value_output
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
    assert odd.tokens == expected.tokens
    torch.testing.assert_close(odd.input_moment, expected.input_moment, rtol=1e-4, atol=1e-5)
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
        losses = held_out_prices(half, {"": weight}, {"": text}, DAMPING).of_all_text()
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
        losses = held_out_prices(half, maps, {"up": text, "down": text}, DAMPING).of_all_text()
        assert losses.shape == whole.losses.shape and losses[-1] == 0
        told, fitted = told + float(losses[width]), fitted + float(whole.losses[width])
        true += float(_cost(whole, width, much))
    assert abs(told / true - 1) < min(0.1, abs(fitted / true - 1)), (told, fitted, true)


@pytest.mark.parametrize("method", [shared_basis, loss_aware_shared_basis])
def test_prices_of_maps_that_share_a_basis_are_nearer_to_those_of_much_text(method: object) -> None:
    maps = {"gate": matrix(), "up": matrix().flip(0)}
    much, rank, told, fitted, true = known(*drawn(200_000, 99)), OUT // 2, 0.0, 0.0, 0.0
    for seed in range(8):
        text = by_halves(seed)
        half, whole = (
            method(maps, dict.fromkeys(maps, one), damping=DAMPING) for one in (text.even, text)
        )
        assert priced_apart(whole)
        prices = held_out_prices(half, maps, dict.fromkeys(maps, text), DAMPING)
        assert prices.own[rank] < prices.other[rank]
        told += float(prices.of_all_text()[rank])
        right = whole.pieces["gate.right"][:rank]
        for role, one in maps.items():
            stored = whole.pieces[f"{role}.left"][:, :rank] @ right
            fitted += expected_loss(one, stored, text, DAMPING)
            true += expected_loss(one, stored, much, DAMPING)
    assert abs(told / true - 1) < min(0.1, abs(fitted / true - 1)), (told, fitted, true)


def test_prices_of_value_heads_are_those_of_what_is_stored() -> None:
    """Two value heads of five dimensions, each read by two query heads that o brings together."""
    generator = torch.Generator().manual_seed(1)
    maps = {"v": torch.randn(10, 30, generator=generator), "o": torch.randn(12, 20)}
    x, g = (torch.randn(90, size, generator=generator) for size in (20, 12))
    text = replace(known(x, g), even=known(x[::2], g[::2]))
    half = value_output(maps, {"v": text, "o": text.even}, head_dim=5, damping=DAMPING)
    prices = held_out_prices(half, maps, {"v": text, "o": text}, DAMPING)
    assert len(prices.own) == 11
    width = round(PARTS[2] * 10)
    shape = (12, 20, 2 * width)
    pieces = {name[2:]: one for name, one in half.pieces.items() if name.startswith("o.")}
    stored = make_format("picked_inputs", shape, pieces, None, torch.float32)
    values = {name[2:]: one for name, one in half.pieces.items() if name.startswith("v.")}
    turned = (
        make_format("padded_outputs", (10, 30, width), values, None, torch.float32).dense().detach()
    )
    turns = [  # of either value head, read by two query heads
        torch.linalg.lstsq(one.T, two.T).solution.T
        for one, two in zip(maps["v"].split(5), turned.split(5), strict=True)
    ]
    product = stored.dense().detach() @ torch.block_diag(*(turns[0],) * 2, *(turns[1],) * 2)
    for price, one in ((prices.own, text.even), (prices.other, text.odd())):
        lost = expected_loss(maps["o"], product, one, DAMPING)
        assert float(price[width]) == pytest.approx(lost, rel=1e-3)


def test_prices_of_keys_are_of_text_that_did_not_choose() -> None:
    generator = torch.Generator().manual_seed(2)
    maps = {role: torch.randn(8, IN, generator=generator) for role in ("k", "q")}
    x, g = drawn(TOKENS, 5)
    text = replace(known(x, g[:, :8]), even=known(x[::2], g[::2, :8]))
    facts = {"head_dim": 4, "biases": {"k": None, "q": None}, "damping": DAMPING}

    def lost(unseen: Statistics | None) -> Tensor:
        given = None if unseen is None else {"q": unseen, "k": unseen}
        return query_key(maps, {"q": text.even, "k": text.even}, unseen=given, **facts).losses

    assert torch.equal(lost(text.even), lost(None)), "the same text has the same prices"
    assert (lost(text.odd())[1:8] > lost(None)[1:8]).all(), "what was not seen loses more"


def test_what_cannot_be_priced_apart_is_scaled_as_its_neighbours_are() -> None:
    losses, parts = torch.tensor([8.0, 4.0, 2.0]), torch.tensor([0.0, 0.2, 1.0])
    known_factors = [torch.full((len(PARTS),), factor) for factor in (1.5, 9.0, 1.25)]
    torch.testing.assert_close(scaled(losses, parts, known_factors), 1.5 * losses)
    assert torch.equal(scaled(losses, parts, []), losses)
    rising = [torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])]
    expected = losses * torch.tensor([1.0, 1.5, 5.0])
    torch.testing.assert_close(scaled(losses, parts, rising), expected)


def test_factors_are_how_far_a_fit_flatters_itself() -> None:
    text, weight = by_halves(0), matrix()
    half, whole = (loss_aware_svd(weight, one, damping=DAMPING) for one in (text.even, text))
    prices = held_out_prices(half, {"": weight}, {"": text}, DAMPING)
    at = [round(part * OUT) for part in PARTS]
    expected = prices.of_all_text()[at] / whole.losses[at]
    assert (prices.factors() > 1).all()
    torch.testing.assert_close(prices.factors(), expected, rtol=0.25, atol=0)


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
