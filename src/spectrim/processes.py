"""Runs of several processes: how many there are, which one this is, and names of its own."""

from __future__ import annotations

import os


def processes() -> int:
    """Return how many processes this run has, as accelerate's launcher and torchrun tell them."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def process() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def own(name: str) -> str:
    """Return a name that no other process of the same run takes."""
    return f"{name}-{process()}" if process() else name
