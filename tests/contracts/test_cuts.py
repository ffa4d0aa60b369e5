"""What every method promises of its cuts, in every format that they can be stored in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from spectrim.curve import Group
from spectrim.cutting.currency import currency_losses
from spectrim.formats import FactoredLinear, formats, low_rank_formats, make_format
from spectrim.formats.autoencoder import Autoencoder
from spectrim.methods import Decomposition, methods
from spectrim.model.sites import Site
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics
from tiny_heads import HEAD_DIM, through_heads

NONE = Damping(0.0, 0.0)
SIZES = {"": (18, 12), "q": (16, 12), "k": (8, 12), "v": (8, 12), "o": (12, 16),
         "gate": (20, 12), "up": (20, 12), "down": (12, 20), "cross_k": (16, 12),
         "cross_v": (16, 12), "cross_q": (16, 12), "cross_o": (12, 16),
         "expert0_gate_up": (20, 12),
         "expert1_gate_up": (20, 12), "expert2_gate_up": (20, 12)}  # fmt: skip
SAMPLED = 2000  # inputs: enough for what is trained on them


def moment(size: int, generator: torch.Generator) -> Tensor:
    rows = torch.randn(4 * size, size, generator=generator) * torch.logspace(0, -1.5, size)
    return rows.T @ rows / len(rows)


def drawn(moment: Tensor, generator: torch.Generator) -> Tensor:
    """Return skew inputs that have exactly this second moment."""
    rows = torch.randn(SAMPLED, len(moment), generator=generator, dtype=torch.float64).exp()
    own = torch.linalg.cholesky(rows.T @ rows / len(rows))
    white = torch.linalg.solve_triangular(own, rows.T, upper=False)
    return (torch.linalg.cholesky(moment.double()) @ white).T


@dataclass(frozen=True)
class Case:
    """One method on random maps, and the format that one of its roles is stored in."""

    method: str
    roles: tuple[str, ...]
    role: str
    format: str

    @property
    def shape(self) -> tuple[int, int]:
        return SIZES[self.role]

    @property
    def maps(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(7)
        return {r: torch.randn(*SIZES[r], generator=generator) for r in self.roles}

    @property
    def statistics(self) -> dict[str, Statistics]:
        generator = torch.Generator().manual_seed(8)
        read = {r: r if r.startswith("expert") else SIZES[r][1] for r in self.roles}
        inputs = {one: moment(SIZES[r][1], generator) for r, one in read.items()}
        return {
            r: Statistics(
                100 + 50 * place, None, inputs[read[r]], moment(SIZES[r][0], generator),
                drawn(inputs[read[r]], generator).float(),
            )
            for place, r in enumerate(self.roles)
        }  # fmt: skip

    def decompose(
        self, damping: Damping = NONE, statistics: dict[str, Statistics] | None = None
    ) -> Decomposition:
        function = methods.get(self.method)
        statistics = statistics or self.statistics
        single = self.roles == ("",)
        arguments = (self.maps[""], statistics[""]) if single else (self.maps, statistics)
        known = {"head_dim": HEAD_DIM, "biases": dict.fromkeys(self.roles), "unseen": None}
        further = {need: known[need] for need in methods.constant(self.method, "NEEDS") or ()}
        found: Decomposition = function(*arguments, damping=damping, **further)
        return found

    def module(
        self, found: Decomposition, rank: int, dtype: torch.dtype = torch.float64
    ) -> FactoredLinear:
        pieces = self.pieces(found)
        if formats.get(self.format).follows:
            pieces = {**self.owner.pieces(found), **pieces}
        shape = (*self.shape, rank)
        made = make_format(self.format, shape, pieces, torch.ones(self.shape[0]), dtype)
        return self.linked(made, found)

    def pieces(self, found: Decomposition) -> dict[str, Tensor]:
        """Return the pieces of this role."""
        if self.roles == ("",):
            return found.pieces
        start = f"{self.role}."
        return {k.removeprefix(start): p for k, p in found.pieces.items() if k.startswith(start)}

    @property
    def owner(self) -> Case:
        """Return the case of the map that the others of a group follow."""
        return self.members[0]

    @property
    def members(self) -> list[Case]:
        """Return the cases of all maps that are cut together."""
        if len(self.roles) == 1:
            return [self]
        return [
            replace(self, role=role, format=stored_as(self.method, self.roles, role)[0])
            for role in self.roles
        ]

    def linked(self, module: FactoredLinear, found: Decomposition) -> FactoredLinear:
        """Return a module that follows another one linked to it, any other as it is."""
        if module.follows:
            module.link(self.owner.module(found, module.rank, module.weight.dtype))  # type: ignore
        return module


def groups(method: str) -> list[tuple[str, ...]]:
    """Return the roles that a method takes together, with and without those that may be missing."""
    wanted = methods.constant(method, "ROLES")
    if wanted is None:
        return [("",)]
    every = wanted if isinstance(wanted[0], tuple) else (wanted,)
    found = [tuple(role.rstrip("?") for role in one) for one in every]
    found += [tuple(role for role in one if not role.endswith("?")) for one in every]
    return [numbered(one) for one in dict.fromkeys(found)]


def numbered(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return the roles of SIZES that these stand for, with numbers in the place of "*"."""
    return tuple(size for role in roles for size in SIZES if fnmatchcase(size, role))


def stored_as(method: str, roles: tuple[str, ...], role: str) -> list[str]:
    """Return the formats that a role of a method may be stored in."""
    own = methods.constant(method, "FORMAT")
    if isinstance(own, dict):
        own = own[role] if role in own else own["first" if role == roles[0] else "others"]
    return [own] if own else low_rank_formats()


def cases() -> Iterator[Case]:
    for method in methods.names():
        for roles in groups(method):
            for role in roles:
                for form in stored_as(method, roles, role):
                    yield Case(method, roles, role, form)


CASES = list(cases())
every = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.method}-{c.role}-{c.format}")


def test_every_format_is_left_by_some_method() -> None:
    by_stages = {name for name in formats.names() if formats.constant(name, "STAGE")}
    assert {case.format for case in CASES} == set(formats.names()) - by_stages


@every
def test_ranks_rise_and_losses_fall(case: Case) -> None:
    found = case.decompose()
    assert (found.ranks.diff() > 0).all()
    assert len(found.ranks) == len(found.losses)
    assert (found.losses.diff() <= 1e-6 * found.losses.max()).all()


@every
def test_sizes_rise_with_rank_and_are_what_the_file_holds(case: Case, tmp_path: Path) -> None:
    found = case.decompose()
    form = formats.get(case.format)
    ranks = [int(rank) for rank in found.ranks if rank > 0]
    sizes = [form.numbers(*case.shape, rank) for rank in ranks]
    assert sizes == sorted(sizes)
    module = case.module(found, ranks[len(ranks) // 2], torch.bfloat16)
    save_file(dict(module.state_dict()), tmp_path / "m.safetensors")
    held = {k: t for k, t in load_file(tmp_path / "m.safetensors").items() if k != "bias"}
    assert module.stored() == sum(t.numel() for t in held.values() if t.is_floating_point())
    assert module.stored() == sizes[len(ranks) // 2]
    stored = form.bytes(*case.shape, module.rank, torch.bfloat16)
    assert stored == sum(t.numel() * t.element_size() for t in held.values())


@every
def test_forward_equals_dense_and_its_bias(case: Case) -> None:
    found = case.decompose()
    module = case.module(found, int(found.ranks[len(found.ranks) // 2]))
    if not getattr(module, "linear", True):
        pytest.skip(f"{case.format} stands for no matrix")
    matrix = module.dense()
    x = torch.randn(2, 3, matrix.shape[1], dtype=torch.float64)
    torch.testing.assert_close(module(x), functional.linear(x, matrix, module.bias))


@every
def test_save_load_is_bit_equal(case: Case, tmp_path: Path) -> None:
    found = case.decompose()
    module = case.module(found, int(found.ranks[len(found.ranks) // 2]), torch.float32)
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())
    save_file(dict(module.state_dict()), tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty: FactoredLinear = formats.get(case.format)(**module.shape())
    empty.load_state_dict(load_file(tmp_path / "m.safetensors"), assign=True)
    empty = case.linked(empty, found)
    x = torch.randn(4, module.dense().shape[1])
    assert torch.equal(empty(x), module(x))


@every
def test_same_input_gives_same_bits(case: Case) -> None:
    one, other = case.decompose(), case.decompose()
    assert torch.equal(one.losses, other.losses)
    rank = int(one.ranks[len(one.ranks) // 2])
    first, second = (case.module(found, rank).state_dict() for found in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every
def test_gradients_reach_every_factor(case: Case) -> None:
    found = case.decompose()
    module = case.module(found, int(found.ranks[len(found.ranks) // 2]), torch.float32)
    module(torch.randn(3, module.dense().shape[1])).square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@every
def test_fewer_tokens_than_dimensions_are_survived(case: Case) -> None:
    generator = torch.Generator().manual_seed(1)
    statistics = case.statistics
    for one in statistics.values():
        for name in ("input_moment", "gradient_moment"):
            rows = torch.randn(3, getattr(one, name).shape[0], generator=generator)
            setattr(one, name, rows.T @ rows)
    found = case.decompose(Damping(), statistics)
    assert found.losses.isfinite().all()
    module = case.module(found, int(found.ranks[-1]))
    assert all(tensor.isfinite().all() for tensor in module.state_dict().values())


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.role == c.roles[0]],
    ids=lambda c: f"{c.method}-{'-'.join(c.roles)}-{c.format}",
)  # fmt: skip
def test_losses_are_the_damage_that_is_measured(case: Case) -> None:
    """½ E‖G^½ (W x - f(x))‖² on inputs with the second moment A, summed over the maps."""
    found = case.decompose()
    losses = found.losses
    if not found.in_nats:
        losses = currency_losses(found, case.maps[""], case.statistics[""], NONE)
    bent = issubclass(formats.get(case.format), Autoencoder)
    near = 0.25 if bent else 1e-2  # the former is an estimate itself
    for at in {0, len(losses) // 3, 2 * len(losses) // 3, len(losses) - 1}:
        if rank := int(found.ranks[at]):
            sites = tuple(Site("", 0, "", *member.shape) for member in case.members)
            names = tuple(member.format for member in case.members)
            ranks = Group(case.method, sites, names).ranks(rank)
            modules = [m.module(found, own) for m, own in zip(case.members, ranks, strict=True)]
            measured = sum(damage(member, found, modules) for member in case.members)
            whole = float(losses.max())
            assert float(losses[at]) == pytest.approx(measured, rel=near, abs=1e-6 * whole), rank


@torch.no_grad()
def damage(case: Case, found: Decomposition, modules: list[FactoredLinear]) -> float:
    """Return what one map costs; that of rows which are left out is felt behind them."""
    module, before = modules[case.members.index(case)], modules[0]
    rank, known, dense = module.rank, case.statistics[case.role], case.maps[case.role].double()
    assert known.input_moment is not None and known.gradient_moment is not None
    x = drawn(known.input_moment, torch.Generator().manual_seed(9))
    if case.format == "fewer_outputs":
        kept = found.pieces["up.order"][:rank]
        torch.testing.assert_close(module.dense(), dense[kept])
        return 0.0
    if case.format == "padded_outputs" and case.role.removeprefix("cross_") != "q":
        return 0.0
    whole = x @ dense.T
    if case.format == "fewer_inputs":
        x = x[:, found.pieces["up.order"][:rank]]
    answered = module(x) - 1  # a bias of ones
    if case.format in ("padded_outputs", "picked_inputs"):
        answered = through_heads(module, before, case.owner.maps[case.owner.role], x)
    missed = whole - answered
    return float(0.5 * ((missed @ known.gradient_moment.double()) * missed).sum(1).mean())
