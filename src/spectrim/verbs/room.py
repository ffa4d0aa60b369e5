"""How much of a size is left for the linear maps of the blocks, once all else has its bytes."""

from __future__ import annotations

from math import ceil
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.model.runtime import Size
from spectrim.model.sites import Site
from spectrim.model.weights import Weights
from spectrim.recipe.recipe import Keep

LEAST = 0.04  # of the linear maps' bytes: what no plan reaches
LEAST_BITS = 2  # of a number


def part_of(size: Keep | Size, whole: int, config: Any) -> Keep:
    """Return the part of a model's bytes that a size is, all of them where it is larger."""
    return (
        size
        if isinstance(size, Keep)
        else Keep(fraction=min(size.of(whole, config) / whole, 1.0), of="bytes")
    )


def refuse_too_small(weights: Weights, sites: list[Site], size: Keep) -> None:
    """Raise SpectrimError for a size that leaves too little for the linear maps of the blocks.

    That is also one of numbers, which few bits do not save.
    """
    if size.of == "linear":
        raise SpectrimError(
            "--size is a size in bytes; write '25%' (of the whole model) or '25% of linear bytes'"
        )
    part = left_for_maps(weights, sites, size, LEAST_BITS)
    if part < LEAST:
        whole, linear, others = _bytes(weights, sites, size, LEAST_BITS)
        least = ceil(100 * (LEAST * linear + others) / whole)
        raise SpectrimError(
            f"{size} leaves {max(part, 0):.1%} of their bytes for the linear maps, which is no "
            f"model any more; ask for {least}% of {size.of} or more"
        )


def left_for_maps(weights: Weights, sites: list[Site], size: Keep, bits: int) -> float:
    """Return the part of the linear maps' bytes that a size leaves them.

    bits: of embedding and head, where they are inside the budget.
    """
    whole, linear, others = _bytes(weights, sites, size, bits)
    return (size.fraction * whole - others) / linear


def _bytes(
    weights: Weights, sites: list[Site], size: Keep, bits: int
) -> tuple[float, float, float]:
    """Return what is 100 % of a size, the bytes of the linear maps, and of what else is in it."""
    width = weights.dtype().itemsize
    linear = width * sum(s.out_features * s.in_features for s in sites if s.block >= 0)
    if size.of != "bytes":
        return linear, linear, 0.0
    ends = sum(s.out_features * s.in_features for s in sites if s.block < 0)
    whole = weights.bytes()
    return whole, linear, whole - linear - width * ends + ends * bits / 8
