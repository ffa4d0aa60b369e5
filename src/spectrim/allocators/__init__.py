"""Ways to share one budget among the curves of all sites.

An allocator is one file with a function of its name, ``(curves, budget, measure)``: it returns for
every curve the index of its cut. Those that need the true loss of a choice ask ``measure``.
"""

from __future__ import annotations

from collections.abc import Callable

from spectrim.registry import Registry

Measure = Callable[[list[int]], float]
"""A choice of cuts → its loss on the search split, nats per token. Each call is a pass over it."""

allocators = Registry("allocator", "spectrim.allocators")
