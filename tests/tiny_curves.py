"""Curves of which everything is known, and a truth to measure choices of their cuts against."""

from __future__ import annotations

import torch

from spectrim.curve import Curve, Group
from spectrim.model.sites import Site

FULL = 20
DENSE_LOSS = 3.0


def curve(losses: torch.Tensor, values: torch.Tensor | None = None, block: int = 0) -> Curve:
    """A curve of two factors of a square matrix, of every rank that stores less than it."""
    ranks = torch.arange(1, len(losses) + 1)
    site = Site(f"s{block}", block, "q", FULL, FULL)
    group = Group("m", (site,), ("low_rank",))
    sizes = torch.cat((ranks[:-1] * 2 * FULL, torch.tensor([FULL * FULL]))).double()
    full = torch.cat((ranks[:-1], torch.tensor([FULL])))
    return Curve((site,), full, sizes, losses, (group,) * (len(losses) - 1), values)


def spectrum(fall: float, block: int = 0, *, shown: bool = True) -> Curve:
    """The curve of singular values i^-fall: what is lost are half the squares that are cut."""
    values = torch.arange(1, FULL + 1).double() ** -fall
    tails = 0.5 * values.square().flip(0).cumsum(0).flip(0)
    losses = torch.cat((tails[1:10], torch.zeros(1)))
    return curve(losses, values if shown else None, block)


def spent(found: list[Curve], chosen: list[int]) -> float:
    return sum(float(one.sizes[at]) for one, at in zip(found, chosen, strict=True))


def ranks(found: list[Curve], chosen: list[int]) -> list[int]:
    return [int(one.ranks[at]) for one, at in zip(found, chosen, strict=True)]


class Truth:
    """Measures what a choice truly costs, and counts."""

    def __init__(self, found: list[Curve], scales: list[float]) -> None:
        self.found, self.scales, self.asked = found, scales, 0

    def __call__(self, chosen: list[int]) -> float:
        self.asked += 1
        cuts = zip(self.scales, self.found, chosen, strict=True)
        return DENSE_LOSS + sum(scale * float(one.losses[at]) for scale, one, at in cuts)
