"""Neuron selection against the same things written out in the plainest way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spectrim.formats import FactoredLinear, make_format
from spectrim.methods import Decomposition, methods
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics

NAMES = ["neuron_selection", "loss_aware_neuron_selection"]
NEURONS, HIDDEN = 70, 12  # more neurons than two of the blocks in which they are chosen
NONE = Damping(0.0, 0.0)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(size: int, seed: int) -> Tensor:
    """Of inputs that depend on each other and differ in size."""
    rows = drawn(4 * size, size, seed=seed) * torch.logspace(0, -1.5, size)
    rows = rows @ drawn(size, size, seed=seed + 1)
    return rows.T @ rows / len(rows)


def maps() -> dict[str, Tensor]:
    return {
        "gate": drawn(NEURONS, HIDDEN, seed=0),
        "up": drawn(NEURONS, HIDDEN, seed=1),
        "down": drawn(HIDDEN, NEURONS, seed=2),
    }


def known() -> dict[str, Statistics]:
    down = Statistics(100, None, moment(NEURONS, 3), moment(HIDDEN, 5))
    other = Statistics(100, None, moment(HIDDEN, 7), moment(NEURONS, 9))
    return {"gate": other, "up": other, "down": down}


def decompose(name: str, **changed: object) -> Decomposition:
    given: dict[str, object] = {"weight": maps(), "statistics": known(), "damping": NONE} | changed
    found: Decomposition = methods.get(name)(
        given["weight"], given["statistics"], damping=given["damping"]
    )
    return found


def module(
    found: Decomposition, role: str, width: int, bias: Tensor | None = None
) -> FactoredLinear:
    start = f"{role}."
    pieces = {k.removeprefix(start): p for k, p in found.pieces.items() if k.startswith(start)}
    shape = (HIDDEN, NEURONS) if role == "down" else (NEURONS, HIDDEN)
    return make_format(methods.constant(NAMES[0], "FORMAT")[role], (*shape, width), pieces, bias,
                  torch.float64)  # fmt: skip


def gains(order: list[int], loss_aware: bool) -> Tensor:
    """What each neuron would gain behind those of an order, by the whole Schur complement."""
    a, g = (getattr(known()["down"], one).double() for one in ("input_moment", "gradient_moment"))
    down, residual = maps()["down"].double(), a
    if order:
        kept = a[:, order]
        residual = a - kept @ torch.linalg.solve(a[order][:, order], kept.T)
    if not loss_aware:
        found = residual.diagonal() * down.square().sum(0)
    else:
        across = residual @ down.T @ g @ down @ residual
        found = across.diagonal() / residual.diagonal()
    found[order] = -1.0
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_width_loses_what_is_said(name: str) -> None:
    found, statistics = decompose(name), known()["down"]
    a, g = statistics.input_moment.double(), statistics.gradient_moment.double()
    order = found.pieces["up.order"]
    for width in (1, 9, 33, 69, 70):
        effect = torch.zeros(HIDDEN, NEURONS, dtype=torch.float64)
        effect[:, order[:width]] = module(found, "down", width).dense().detach()
        error = maps()["down"].double() - effect
        damage = float(0.5 * torch.trace(error.T @ g @ error @ a))
        scale = float(found.losses[0])
        assert float(found.losses[width]) == pytest.approx(damage, rel=1e-3, abs=1e-8 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_others_are_made_up_for_by_least_squares(name: str) -> None:
    found = decompose(name)
    a = known()["down"].input_moment.double()
    order = found.pieces["gate.order"]
    kept = order[:20]
    expected = maps()["down"].double() @ torch.linalg.solve(a[kept][:, kept], a[kept]).T
    torch.testing.assert_close(
        module(found, "down", 20).dense().detach(), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_that_of_the_greedy_choice(name: str) -> None:
    order = decompose(name).pieces["up.order"].tolist()
    assert sorted(order) == list(range(NEURONS))
    for done in range(NEURONS - 2):
        found = gains(order[:done], name.startswith("loss_aware"))
        assert float(found[order[done]]) == pytest.approx(float(found.max()), rel=1e-6), done


def test_looking_at_the_loss_loses_less() -> None:
    plain, aware = (decompose(name).losses for name in NAMES)
    assert aware[1] < plain[1]
    assert aware.sum() < 0.97 * plain.sum()


@pytest.mark.parametrize("name", NAMES)
def test_full_width_is_the_same_mlp_in_another_order(name: str) -> None:
    found = decompose(name)
    assert float(found.losses[-1]) == 0.0
    order = found.pieces["up.order"]
    for role in ("gate", "up"):
        kept = module(found, role, NEURONS).dense()
        assert torch.equal(kept, maps()[role][order].double())
    assert torch.equal(module(found, "down", NEURONS).dense(), maps()["down"][:, order].double())


@pytest.mark.parametrize("name", NAMES)
def test_neurons_that_repeat_others_go_for_nothing(name: str) -> None:
    """An MLP with biases, each of its neurons there twice, is the same at half its width."""
    x, double = drawn(400, HIDDEN, seed=11).double(), torch.arange(20).repeat(2)
    up, down = drawn(20, HIDDEN, seed=12).double()[double], drawn(HIDDEN, 40, seed=13).double()
    bias = drawn(20, seed=14).double()[double]
    h = functional.relu(x @ up.T + bias)
    statistics = {
        "up": known()["up"],
        "down": Statistics(400, None, h.T @ h / 400, moment(HIDDEN, 5)),
    }
    given = {"up": up.float(), "down": down.float()}
    found = decompose(name, weight=given, statistics=statistics)
    assert float(found.losses[20]) < 1e-5 * float(found.losses[0])
    narrow = module(found, "up", 20, bias)
    assert narrow.bias is not None and narrow.bias.shape == (20,)
    out = module(found, "down", 20)(functional.relu(narrow(x)))
    torch.testing.assert_close(out, h @ down.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_dead_neuron_goes_first(name: str) -> None:
    given, statistics = maps(), known()
    given["down"][:, 3] = 0.0
    a = statistics["down"].input_moment.clone()
    a[3], a[:, 3] = 0.0, 0.0
    statistics["down"] = replace(statistics["down"], input_moment=a)
    found = decompose(name, weight=given, statistics=statistics, damping=Damping())
    assert int(found.pieces["up.order"][-1]) == 3


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_reach_the_loss_costs_nothing(name: str) -> None:
    statistics = known()
    statistics["down"] = replace(statistics["down"], gradient_moment=torch.zeros(HIDDEN, HIDDEN))
    assert not decompose(name, statistics=statistics).losses.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", ["input_moment", "gradient_moment"])
def test_missing_moments_are_refused(name: str, missing: str) -> None:
    statistics = known()
    statistics["down"] = replace(statistics["down"], **{missing: None})
    with pytest.raises(ValueError, match="down map's input and gradient moments"):
        decompose(name, statistics=statistics)
