"""What is bought together: every way to store some sites jointly and the others alone."""

from __future__ import annotations

import torch

from spectrim.curve import Curve, Group
from spectrim.cutting.allocation import _united
from spectrim.model.sites import Site

ALONE = {role: Site(f"0.{role}", 0, role, 8, 8) for role in "qkvo"}


def curve(roles: str, size: float, loss: float) -> Curve:
    """Return the curve of sites that offer one cut, and the matrices of 64 numbers each."""
    sites = tuple(ALONE[role] for role in roles)
    sizes = torch.tensor([size, 64.0 * len(roles)], dtype=torch.float64)
    losses = torch.tensor([loss, 0.0], dtype=torch.float64)
    group = Group(roles, sites, ("low_rank",) * len(sites))
    return Curve(sites, torch.tensor([4, 8]), sizes, losses, (group,))


def test_joint_curves_are_bought_together_where_they_have_no_site_in_common() -> None:
    members = [curve("kq", 40, 0.1), curve("vo", 40, 0.1), curve("qkv", 60, 0.5)]
    unit = _united(members, [curve(role, 30, 0.2) for role in "qkvo"])
    ways = {tuple(c.methods[0] for c, _ in picks) for picks in (unit.picks or [])}
    assert ("kq", "vo") in ways and ("kq", "v", "o") in ways
    assert not any("qkv" in way and ("kq" in way or "vo" in way) for way in ways)
    smallest = unit.picked(0)
    assert {one.methods[0] for one, _ in smallest} == {"kq", "vo"}
    assert float(unit.curve.sizes[0]) == 80.0
    for at in range(len(unit.curve.sizes)):
        assert sum(len(one.sites) for one, _ in unit.picked(at)) == len(ALONE)
