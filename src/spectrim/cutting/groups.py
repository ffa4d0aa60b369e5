"""Sites that a method takes together, and the formats and ranks that it gives them."""

from __future__ import annotations

import re

from spectrim.formats import FactoredLinear, formats
from spectrim.methods import methods
from spectrim.model.sites import Site
from spectrim.recipe.options import Factorize


def centred(options: Factorize, method: str) -> bool:
    """Return whether a method sees centred inputs, and biases make up for their mean."""
    own: bool | None = methods.constant(method, "CENTRED")
    return options.centre if own is None else own


def together(method: str, sites: list[Site]) -> list[tuple[Site, ...]]:
    """Return the sites of a block as a method takes them: one by one, or by its ROLES."""
    groups = _groups(method)
    if not groups:
        return [(site,) for site in sites]
    if "head_dim" in _needs(method):
        sites = [site for site in sites if site.head_dim]
    played: dict[tuple[str, str], Site] = {}  # by prefix and role
    for site in sites:
        if (role := _played(groups, site)) is not None:
            played[site.role.removesuffix(role), role] = site
    found = []
    for prefix in dict.fromkeys(prefix for prefix, _ in played):
        here = {role: site for (at, role), site in played.items() if at == prefix}
        for roles in groups:
            fitting = [_fitting(role, here) for role in _names(roles)]
            if all(fits or role.endswith("?") for role, fits in zip(roles, fitting, strict=True)):
                found.append(tuple(site for fits in fitting for site in fits))
    return found


def is_open(method: str) -> bool:
    """Return whether a method takes together however many sites fit a role."""
    return any("*" in role for roles in _groups(method) for role in roles)


def role_in(method: str, site: Site) -> str:
    """Return which of a method's ROLES a site plays, its prefix left out."""
    role = _played(_groups(method), site)
    assert role is not None
    return role


def _groups(method: str) -> list[tuple[str, ...]]:
    """Return the groups of roles that a method takes together; none where it takes single maps."""
    wanted = methods.constant(method, "ROLES") or ()
    return list(wanted) if wanted and isinstance(wanted[0], tuple) else [wanted] * bool(wanted)


def _needs(method: str) -> tuple[str, ...]:
    """Return what a method is called with beside maps and statistics."""
    return methods.constant(method, "NEEDS") or ()


def _names(roles: tuple[str, ...]) -> list[str]:
    return [role.rstrip("?") for role in roles]


def _played(groups: list[tuple[str, ...]], site: Site) -> str | None:
    """Return the longest role that a site's ends with, behind "encoder_", "expert3_" or nothing.

    Where that has a "*", what stands in its place is part of what is returned.
    """
    known = sorted((role for roles in groups for role in _names(roles)), key=len, reverse=True)
    for role in known:
        if found := re.fullmatch(rf"(?:.+_)?({_pattern(role)})", site.role):
            return found[1]
    return None


def _fitting(role: str, sites: dict[str, Site]) -> list[Site]:
    return [site for known, site in sites.items() if re.fullmatch(_pattern(role), known)]


def _pattern(role: str) -> str:
    return role.replace("*", r"\d+")


def format_of(options: Factorize, method: str, site: Site, place: int = 0) -> str:
    """Return the format that a cut of a method is stored in; place: among sites cut together."""
    own = methods.constant(method, "FORMAT")
    if isinstance(own, dict):
        said = "others" if place else "first"
        return str(own[said if is_open(method) else role_in(method, site)])
    return str(own or options.format)


def forms_of(
    options: Factorize, method: str, sites: tuple[Site, ...]
) -> list[type[FactoredLinear]]:
    """Return the formats in which a method stores sites that it takes together."""
    return [formats.get(format_of(options, method, one, at)) for at, one in enumerate(sites)]


def ranks_of(forms: list[type[FactoredLinear]], sites: tuple[Site, ...], rank: int) -> list[int]:
    """Return the rank of each of the sites that are cut together, from that of the first.

    All keep the same part of the largest that each may have: where several query heads read one
    value head, o keeps as many times more inputs than v keeps outputs.
    """
    largest = [
        form.largest(site.out_features, site.in_features)
        for form, site in zip(forms, sites, strict=True)
    ]
    return [rank * one // largest[0] for one in largest]
