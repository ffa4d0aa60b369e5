"""Ways to share one budget among the curves of all sites.

An allocator is one file with a function of its name, ``(curves, budget, measure)``: it returns for
every curve the index of its cut. Those that need the true loss of a choice ask ``measure``, and say
so by the constant ``MEASURES``.
"""

from __future__ import annotations

from collections.abc import Callable

from spectrim.errors import SpectrimError
from spectrim.registry import Registry

Measure = Callable[[list[int]], float]
"""A choice of cuts → its loss on the search split, nats per token. Each call is a pass over it."""

allocators = Registry("allocator", "spectrim.allocators")


def needed(measure: Measure | None, allocator: str) -> Measure:
    """Return what measures; SpectrimError where an allocator that needs it is given nothing."""
    if measure is None:
        raise SpectrimError(
            f"allocator '{allocator}' measures true losses, for which there is no text here; "
            "take one that does not, such as 'global'"
        )
    return measure
