"""A curve: what storing the sites of a group takes and costs, at every rank, and in every grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.formats import formats, packed_format
from spectrim.formats.packed.scales import Grid
from spectrim.model.sites import Site
from spectrim.plan import Decision, left_dense


@dataclass(frozen=True)
class Group:
    """Sites of a block that a method cuts together, mostly one alone, and how they are stored."""

    method: str
    """By name; "" where the whole matrix is stored, in fewer bits."""
    sites: tuple[Site, ...]
    formats: tuple[str, ...]
    """Of each site, by name."""
    bias: bool = False
    """Whether biases make up for the mean of the inputs."""
    roles: tuple[str, ...] = ()
    """Which of the method's ROLES each site plays; none where the method takes single maps."""

    @classmethod
    def whole(cls, site: Site) -> Group:
        """Return a site whose matrix stays whole."""
        return cls("", (site,), ("dense",))

    @property
    def site(self) -> Site:
        """Return the site, the first where there are several."""
        return self.sites[0]

    @property
    def key(self) -> str:
        """Return a name for method and sites."""
        return " ".join((self.method or "whole", *(site.name for site in self.sites)))

    @property
    def full_rank(self) -> int:
        """Return the largest rank that the first site may have."""
        return _full_rank(self.formats[0], self.site.out_features, self.site.in_features)

    @property
    def stepped(self) -> bool:
        """Return whether ranks may be held to multiples of a number."""
        return all(formats.get(name).stepped for name in self.formats)

    def ranks(self, rank: int) -> list[int]:
        """Return the rank of each of the sites, from that of the first.

        All keep the same part of the largest that each may have: where several query heads read one
        value head, o keeps as many times more inputs than v keeps outputs.
        """
        full = [
            _full_rank(name, site.out_features, site.in_features)
            for name, site in zip(self.formats, self.sites, strict=True)
        ]
        return [rank * one // full[0] for one in full]

    def numbers(self, rank: int) -> int:
        """Return how many numbers a cut stores, biases apart; rank: of the first site."""
        return sum(formats.get(name).numbers(*shape) for name, shape in self._shapes(rank))

    def bytes(self, rank: int, dtype: torch.dtype) -> int:
        """Return how many bytes a cut stores in a dtype, biases apart; rank: of the first site."""
        return sum(formats.get(name).bytes(*shape, dtype) for name, shape in self._shapes(rank))

    def packed_bytes(self, rank: int, grid: Grid, dtype: torch.dtype) -> int:
        """Return how many bytes a cut stores in few bits, biases apart; dtype: of the scales."""
        return sum(
            formats.get(packed_format(name, grid.bits, grid.trellis)).stored_bytes(
                shape, grid, dtype
            )
            for name, shape in self._shapes(rank)
        )

    def decisions(self, rank: int, loss: float, grid: Grid | None = None) -> list[Decision]:
        """Return how each site is stored by a cut; rank: of the first site; loss: of the group.

        grid: the bits that a stored number gets, None for the checkpoint's own.
        """
        bits: dict[str, Any] = {} if grid is None else vars(grid)
        if not self.method:
            if grid is not None and grid.bits == 1:  # factors with a rank of their own
                sides = self.site.out_features + self.site.in_features
                bits = {**bits, "rank": rank, "stored": rank * sides}
            return [replace(left_dense(self.site), predicted_loss=loss, **bits)]
        return [
            replace(
                left_dense(site),
                format=name,
                rank=shape[2],
                stored=formats.get(name).numbers(*shape),
                predicted_loss=0.0 if place else loss,
                method=self.method,
                bias=self.bias,
                owner=self.site.name if formats.get(name).follows else "",
                **bits,
            )
            for place, (site, (name, shape)) in enumerate(
                zip(self.sites, self._shapes(rank), strict=True)
            )
        ]

    def _shapes(self, rank: int) -> list[tuple[str, tuple[int, int, int]]]:
        """Return the format of every site with (out, in, rank)."""
        return [
            (name, (site.out_features, site.in_features, own))
            for name, site, own in zip(self.formats, self.sites, self.ranks(rank), strict=True)
        ]


def _full_rank(name: str, out_features: int, in_features: int) -> int:
    if name == "dense":
        return min(out_features, in_features)
    largest: int = formats.get(name).largest(out_features, in_features)
    return largest


@dataclass(frozen=True)
class Curve:
    """What one site, or sites that are stored together, offer: at each cut a size and a loss.

    Cuts are ordered by size; the last one is the dense matrix, with the largest rank and loss 0.
    """

    sites: tuple[Site, ...]
    ranks: Int[Tensor, " cuts"]
    """Of the first site."""
    sizes: Float[Tensor, " cuts"]
    """In the unit of the budget: numbers or bytes."""
    losses: Float[Tensor, " cuts"]
    """Predicted increase of the model's loss, nats per token."""
    groups: tuple[Group, ...] = ()
    """What each cut but the dense one is a cut of; none where the curve sums up several."""
    values: Float[Tensor, " full"] | None = None
    """Singular values, where one method alone gave them."""
    grids: tuple[Grid | None, ...] = ()
    """The few bits of each such cut, None for the checkpoint's own; empty where all have those."""

    @property
    def site(self) -> Site:
        """Return the site, the first where there are several."""
        return self.sites[0]

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the method of each cut but the dense one, "" for whole matrices in fewer bits."""
        return tuple(group.method for group in self.groups)

    def is_dense(self, index: int) -> bool:
        """Return whether a cut is the dense matrix."""
        return index % len(self.ranks) == len(self.ranks) - 1

    def decisions(self, index: int) -> list[Decision]:
        """Return how each site is stored by a cut."""
        if self.is_dense(index):
            return [left_dense(site) for site in self.sites]
        rank, loss = int(self.ranks[index]), float(self.losses[index])
        return self.groups[index].decisions(rank, loss, self.grids[index] if self.grids else None)
