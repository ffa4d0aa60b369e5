"""Groups: the sites of a block that a method cuts together, by its ROLES, or one by one."""

from __future__ import annotations

import re

from spectrim.curve import Group
from spectrim.methods import methods
from spectrim.model.sites import Site
from spectrim.recipe.options import Factorize


def groups(method: str, sites: list[Site], options: Factorize) -> list[Group]:
    """Return the groups into which a method takes some sites of a block.

    A method without ROLES takes every site alone. Sites that play no role are left out.
    """
    bias = centred(method, options)
    own = methods.constant(method, "FORMAT")
    return [
        Group(method, members, _formats(own or options.format, roles), bias, roles)
        for members, roles in _members(method, sites)
    ]


def centred(method: str, options: Factorize) -> bool:
    """Return whether a method sees centred inputs, and biases make up for their mean."""
    own: bool | None = methods.constant(method, "CENTRED")
    return options.centre if own is None else own


def open_ended(method: str) -> bool:
    """Return whether a group of a method has as many sites as fit a role with "*"."""
    return any("*" in role for roles in _role_groups(method) for role in roles)


def needs(method: str) -> tuple[str, ...]:
    """Return what a method is called with beside maps and statistics."""
    return methods.constant(method, "NEEDS") or ()


def _members(method: str, sites: list[Site]) -> list[tuple[tuple[Site, ...], tuple[str, ...]]]:
    """Return the sites of every group, and which role each of them plays."""
    role_groups = _role_groups(method)
    if not role_groups:
        return [((site,), ()) for site in sites]
    if "head_dim" in needs(method):
        sites = [site for site in sites if site.head_dim]
    by_prefix: dict[str, dict[str, Site]] = {}  # of a role, such as "expert3_"; then by role
    for site in sites:
        if (role := _role_played(role_groups, site)) is not None:
            by_prefix.setdefault(site.role.removesuffix(role), {})[role] = site
    members = []
    for players in by_prefix.values():
        for roles in role_groups:
            fitting = [_fitting(role, players) for role in _names(roles)]
            if all(fits or role.endswith("?") for role, fits in zip(roles, fitting, strict=True)):
                played = tuple(role for fits in fitting for role in fits)
                members.append((tuple(players[role] for role in played), played))
    return members


def _formats(own: str | dict[str, str], roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return the format of each site of a group; own: of all, or by role, or by place in it."""
    if isinstance(own, str):
        return (own,) * max(len(roles), 1)
    if "first" in own:
        return (own["first"],) + (own["others"],) * (len(roles) - 1)
    return tuple(own[role] for role in roles)


def _role_groups(method: str) -> list[tuple[str, ...]]:
    """Return the groups of roles that a method takes together; none where it takes single maps."""
    wanted = methods.constant(method, "ROLES") or ()
    return list(wanted) if wanted and isinstance(wanted[0], tuple) else [wanted] * bool(wanted)


def _names(roles: tuple[str, ...]) -> list[str]:
    return [role.rstrip("?") for role in roles]


def _role_played(role_groups: list[tuple[str, ...]], site: Site) -> str | None:
    """Return the longest role that a site's ends with, behind "encoder_", "expert3_" or nothing.

    Where that has a "*", what stands in its place is part of what is returned.
    """
    roles = sorted((role for one in role_groups for role in _names(one)), key=len, reverse=True)
    for role in roles:
        if match := re.fullmatch(rf"(?:.+_)?({_pattern(role)})", site.role):
            return match[1]
    return None


def _fitting(role: str, players: dict[str, Site]) -> list[str]:
    return [played for played in players if re.fullmatch(_pattern(role), played)]


def _pattern(role: str) -> str:
    return role.replace("*", r"\d+")
