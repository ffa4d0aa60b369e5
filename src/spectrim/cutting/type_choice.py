"""Which of llama.cpp's types each matrix gets: one allocation under the bytes of the whole file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from gguf import GGMLQuantizationType

from spectrim.allocators import allocators
from spectrim.curve import Curve
from spectrim.cutting.type_losses import Offer
from spectrim.errors import SpectrimError
from spectrim.recipe.sizes import shown
from spectrim.rounding.ggml import TYPES, fits, row_bytes

DENSE = GGMLQuantizationType.BF16


def choose(offers: Sequence[Offer], budget: int) -> dict[str, GGMLQuantizationType]:
    """Return the type of every matrix by its name, so that the summed loss is least.

    budget: bytes of all of them together.

    Raises:
        SpectrimError: the smallest types take more.
    """
    _refuse(sum(offer.bytes((*offer.kinds, DENSE)[0]) for offer in offers), budget)
    chosen = allocators.get("global")([_curve(offer) for offer in offers], budget)
    return {offer.name: (*offer.kinds, DENSE)[at] for offer, at in zip(offers, chosen, strict=True)}


def refuse_smallest(shapes: Iterable[tuple[int, int]], budget: int) -> None:
    """Raise SpectrimError where matrices of these shapes take more in the smallest types."""
    least = 0
    for rows, columns in shapes:
        kind = next((one for one in TYPES if fits(one, columns)), DENSE)
        least += rows * row_bytes(kind, columns)
    _refuse(least, budget)


def _refuse(least: int, budget: int) -> None:
    if least > budget:
        raise SpectrimError(
            f"llama.cpp's smallest types for this model take {shown(least)} of matrices, and "
            f"{shown(max(budget, 0))} are left for them; ask for a larger size"
        )


def predicted(offers: Sequence[Offer], chosen: dict[str, GGMLQuantizationType]) -> float:
    """Return the summed loss of a choice, nats per token."""
    found = ((offer, chosen[offer.name]) for offer in offers)
    return sum(
        0.0 if one == DENSE else offer.losses[offer.kinds.index(one)] for offer, one in found
    )


def _curve(offer: Offer) -> Curve:
    kinds = (*offer.kinds, DENSE)
    sizes = torch.tensor([offer.bytes(one) for one in kinds], dtype=torch.float64)
    return Curve((), torch.arange(len(kinds)), sizes, torch.tensor([*offer.losses, 0.0]))
