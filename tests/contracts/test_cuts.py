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

from spectrim.currency import currency_losses
from spectrim.formats import FactoredLinear, filled, formats, low_rank_formats
from spectrim.methods import Damping, Decomposition, methods
from spectrim.statistics import Statistics

NONE = Damping(0.0, 0.0)
SIZES = {"": (18, 12), "q": (16, 12), "k": (8, 12), "v": (8, 12), "o": (12, 16),
         "gate": (20, 12), "up": (20, 12), "down": (12, 20), "cross_k": (16, 12),
         "cross_v": (16, 12), "expert0_gate_up": (20, 12), "expert1_gate_up": (20, 12),
         "expert2_gate_up": (20, 12)}  # fmt: skip


def moment(size: int, generator: torch.Generator) -> Tensor:
    rows = torch.randn(4 * size, size, generator=generator) * torch.logspace(0, -1.5, size)
    return rows.T @ rows / len(rows)


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
        inputs = {size: moment(size, generator) for size in {SIZES[r][1] for r in self.roles}}
        return {
            r: Statistics(
                100, None, inputs[size := SIZES[r][1]], moment(SIZES[r][0], generator),
                torch.randn(400, size, generator=generator) @ torch.linalg.cholesky(inputs[size]).T,
            )
            for r in self.roles
        }  # fmt: skip

    def decompose(
        self, damping: Damping = NONE, statistics: dict[str, Statistics] | None = None
    ) -> Decomposition:
        function = methods.get(self.method)
        statistics = statistics or self.statistics
        single = self.roles == ("",)
        arguments = (self.maps[""], statistics[""]) if single else (self.maps, statistics)
        found: Decomposition = function(*arguments, damping=damping)
        return found

    def module(
        self, found: Decomposition, rank: int, dtype: torch.dtype = torch.float64
    ) -> FactoredLinear:
        pieces = self.pieces(found)
        if formats.get(self.format).follows:
            pieces = {**self.owner.pieces(found), **pieces}
        shape = (*self.shape, rank)
        made = filled(self.format, shape, pieces, torch.ones(self.shape[0]), dtype)
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
        first = self.roles[0]
        return replace(self, role=first, format=stored_as(self.method, self.roles, first)[0])

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
    assert {case.format for case in CASES} == set(formats.names())


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


@every
def test_the_largest_cut_of_single_maps_is_the_nearest(case: Case) -> None:
    """At the last rank nothing, or less than at any other, is lost; and the loss says so."""
    found = case.decompose()
    whole = max(float(found.losses.max()), 1e-9)
    if case.roles != ("",):
        assert float(found.losses[-1]) < 0.5 * whole
        return
    weight, statistics = case.maps[""], case.statistics[""]
    if not formats.get(case.format).linear:
        return
    for at in (len(found.ranks) // 2, -1):
        module = case.module(found, int(found.ranks[at]))
        error = (weight.double() - module.dense()).detach()
        assert statistics.input_moment is not None and statistics.gradient_moment is not None
        middle = error.T @ statistics.gradient_moment.double() @ error
        damage = float(0.5 * torch.trace(middle @ statistics.input_moment.double()))
        losses = found.losses
        if not found.in_nats:
            losses = currency_losses(found, weight, statistics, NONE)
        assert float(losses[at]) == pytest.approx(damage, rel=1e-2, abs=1e-4 * whole)
