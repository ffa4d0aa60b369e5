"""One basis for maps with one input: what it is, what it stores, and how a model holds it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import SpectrimError
from spectrim.formats import link, make_format
from spectrim.formats.shared_follower import SharedFollower
from spectrim.formats.shared_owner import SharedOwner
from spectrim.methods import Decomposition, methods
from spectrim.walk.moments import Damping, cholesky
from spectrim.walk.statistics import Statistics

NONE = Damping(0.0, 0.0)
INPUTS, OUTPUTS = 12, {"q": 16, "k": 8, "v": 10}
PLAIN, AWARE = "shared_basis", "loss_aware_shared_basis"
both = pytest.mark.parametrize("method", [PLAIN, AWARE])


def moment(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4 * size, size, generator=generator) * torch.logspace(0, -1.5, size)
    return rows.T @ rows / len(rows)


def maps(rank: int = INPUTS) -> dict[str, Tensor]:
    """Return maps whose rows lie in one space of this rank."""
    generator = torch.Generator().manual_seed(3)
    space = torch.randn(rank, INPUTS, generator=generator)
    if rank == INPUTS:
        space = torch.eye(INPUTS)
    return {r: torch.randn(m, rank, generator=generator) @ space for r, m in OUTPUTS.items()}


def known() -> dict[str, Statistics]:
    inputs = moment(INPUTS, 0)
    return {r: Statistics(99, None, inputs, moment(m, m)) for r, m in OUTPUTS.items()}


def decompose(method: str, weight: dict[str, Tensor]) -> Decomposition:
    found: Decomposition = methods.get(method)(weight, known(), damping=NONE)
    return found


def cut(found: Decomposition, role: str, rank: int) -> Tensor:
    return found.pieces[f"{role}.left"][:, :rank] @ found.pieces["q.right"][:rank]


def group(found: Decomposition, rank: int) -> nn.ModuleDict:
    """Return the modules of a cut, linked."""
    right = found.pieces["q.right"]
    made = nn.ModuleDict()
    for role, out in OUTPUTS.items():
        name = "shared_owner" if role == "q" else "shared_follower"
        pieces = {"left": found.pieces[f"{role}.left"], "right": right}
        made[role] = make_format(name, (out, INPUTS, rank), pieces, None, torch.float64)
    link(made, {"k": "q", "v": "q"})
    return made


@both
def test_at_full_rank_nothing_changes(method: str) -> None:
    weight = maps()
    found = decompose(method, weight)
    assert found.losses[-1] <= 1e-6 * found.losses[0]
    for role, matrix in weight.items():
        torch.testing.assert_close(cut(found, role, INPUTS), matrix, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_it_is_the_cut_of_the_weighted_stack(method: str, rank: int) -> None:
    """Against the plainest computation: the roots, the SVD of the stack, the roots undone."""
    weight, statistics = maps(), known()
    root = cholesky(statistics["q"].input_moment.double())
    flows = [statistics[r].gradient_moment.double() for r in OUTPUTS]
    outer = cholesky(torch.block_diag(*flows)) if method == AWARE else torch.eye(34).double()
    u, sigma, vh = torch.linalg.svd(outer.T @ torch.cat(list(weight.values())).double() @ root)
    wanted = outer.T.inverse() @ (u[:, :rank] * sigma[:rank]) @ vh[:rank] @ root.inverse()
    found = decompose(method, weight)
    made = torch.cat([cut(found, role, rank) for role in OUTPUTS]).double()
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-4)


@both
@pytest.mark.parametrize("rank", [0, 4, 9])
def test_losses_are_the_damage_of_the_whole_group(method: str, rank: int) -> None:
    weight, statistics = maps(), known()
    found = decompose(method, weight)
    damage = 0.0
    for role, one in statistics.items():
        error = (weight[role] - cut(found, role, rank)).double()
        middle = error.T @ one.gradient_moment.double() @ error
        damage += float(0.5 * torch.trace(middle @ one.input_moment.double()))
    assert float(found.losses[rank]) == pytest.approx(damage, rel=1e-3)


def test_the_loss_aware_one_loses_no_more_at_any_rank() -> None:
    plain, aware = decompose(PLAIN, maps()), decompose(AWARE, maps())
    assert (aware.losses <= plain.losses * 1.0001 + 1e-6).all()
    assert aware.losses[4] < 0.95 * plain.losses[4]


@both
def test_one_space_of_rows_needs_its_rank_once(method: str) -> None:
    """Single cuts that lose nothing either need a basis of that rank for each map."""
    weight, rank = maps(rank=4), 4
    found = decompose(method, weight)
    assert found.losses[rank] < 1e-5 * found.losses[0] < found.losses[rank - 1]
    for role, matrix in weight.items():
        torch.testing.assert_close(cut(found, role, rank), matrix, rtol=1e-4, atol=1e-4)
        alone = methods.get("loss_aware_svd")(matrix, known()[role], damping=NONE)
        assert alone.losses[rank] < 1e-5 * alone.losses[0] < alone.losses[rank - 1]
    bases = [one.numel() for one in group(found, rank).state_dict().values()]
    assert sum(bases) == rank * (INPUTS + sum(OUTPUTS.values()))


def test_a_map_that_the_loss_ignores_does_not_disturb_the_others() -> None:
    weight, statistics = maps(), known()
    statistics["v"].gradient_moment = torch.zeros(10, 10)
    with_it = methods.get(AWARE)(weight, statistics, damping=NONE)
    del weight["v"], statistics["v"]
    without = methods.get(AWARE)(weight, statistics, damping=NONE)
    torch.testing.assert_close(with_it.losses, without.losses, rtol=1e-3, atol=1e-5)


def test_without_gradients_it_says_what_it_needs() -> None:
    statistics = {r: replace(one, gradient_moment=None) for r, one in known().items()}
    with pytest.raises(ValueError, match="needs the input moment and the gradient moments"):
        methods.get(PLAIN)(maps(), statistics)


# formats


def test_modules_give_what_the_cut_gives() -> None:
    found = decompose(AWARE, maps())
    made, x = group(found, 5), torch.randn(2, 3, INPUTS, dtype=torch.float64)
    for role in OUTPUTS:
        wanted = cut(found, role, 5).double()
        torch.testing.assert_close(made[role].dense(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made[role](x), functional.linear(x, made[role].dense()))
    basis = made["q"].basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(5, dtype=torch.float64))


def test_a_copy_follows_the_copied_owner() -> None:
    made = group(decompose(AWARE, maps()), 5)
    other = copy.deepcopy(made)
    with torch.no_grad():
        made["q"].basis.zero_()
    assert not made["k"].dense().any()
    assert other["k"].dense().any()


def test_gradients_of_followers_reach_the_basis() -> None:
    made = group(decompose(AWARE, maps()), 5).float()
    made["v"](torch.randn(3, INPUTS)).square().sum().backward()
    assert made["q"].basis.grad is not None and made["q"].basis.grad.any()


def test_a_follower_without_its_owner_says_so() -> None:
    alone = SharedFollower(INPUTS, 8, 5, False)
    with pytest.raises(SpectrimError, match="has no basis of its own; link its owner first"):
        alone(torch.randn(2, INPUTS))


@pytest.mark.parametrize("owner", [nn.Linear(INPUTS, 8), SharedOwner(INPUTS, 8, 4, False)])
def test_an_owner_has_to_hold_the_basis(owner: nn.Module) -> None:
    follower = SharedFollower(INPUTS, 8, 5, False, owner="a.q")
    with pytest.raises(SpectrimError, match="reads the basis of a.q, which holds none of rank 5"):
        follower.link(owner)
