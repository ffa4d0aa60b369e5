"""Which of llama.cpp's types each matrix gets: one allocation under the bytes of the whole file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gguf import GGMLQuantizationType

from spectrim.allocators import allocators
from spectrim.cutting.type_losses import Offer
from spectrim.errors import SpectrimError
from spectrim.plan import Curve

DENSE = GGMLQuantizationType.BF16


def choose(offers: Sequence[Offer], budget: int) -> dict[str, GGMLQuantizationType]:
    """Return the type of every matrix by its name, so that the summed loss is least.

    budget: bytes of all of them together.

    Raises:
        SpectrimError: the smallest types take more.
    """
    least = sum(offer.bytes(offer.kinds[0]) for offer in offers if offer.kinds)
    least += sum(offer.bytes(DENSE) for offer in offers if not offer.kinds)
    if least > budget:
        raise SpectrimError(
            f"llama.cpp's smallest types for this model take {least / 1e6:.1f} MB of matrices, and "
            f"{max(budget, 0) / 1e6:.1f} MB are left for them; ask for a larger size"
        )
    chosen = allocators.get("global")([_curve(offer) for offer in offers], budget)
    return {offer.name: (*offer.kinds, DENSE)[at] for offer, at in zip(offers, chosen, strict=True)}


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
