"""Ways to share one budget among the curves of all sites."""

from __future__ import annotations

from spectrim.registry import Registry

allocators = Registry("allocator", "spectrim.allocators")
