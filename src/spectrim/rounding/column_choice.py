"""Codes chosen column by column, each change passed on to the columns behind it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.kernels.library import Library, checked, library
from spectrim.kernels.structures import Choice, address


@dataclass(frozen=True)
class LevelGrid:
    """The values that numbers can get: scale x level + offset."""

    scale: Float[Tensor, "columns rows"]
    offset: Float[Tensor, "columns rows"]
    levels: Float[Tensor, " codes"]

    @classmethod
    def uniform(
        cls,
        scale: Float[Tensor, " rows"],
        offset: Float[Tensor, " rows"],
        columns: int,
        codes: tuple[int, int],
    ) -> LevelGrid:
        """Return the grid of columns that share their scales; its levels are the codes."""
        lowest, highest = codes
        return cls(
            scale.float().expand(columns, -1),
            offset.float().expand(columns, -1),
            torch.arange(lowest, highest + 1, dtype=torch.float32),
        )

    def part(self, some: slice) -> LevelGrid:
        """Return the grid of some columns."""
        return LevelGrid(self.scale[some], self.offset[some], self.levels)

    def values(self, codes: Int[Tensor, "columns rows"]) -> Float[Tensor, "columns rows"]:
        """Return what codes stand for."""
        return self.levels[codes] * self.scale + self.offset

    @cached_property
    def ordered(self) -> tuple[Float[Tensor, " codes"], Int[Tensor, " codes"]]:
        """Return the levels, smallest first, and the code of each."""
        ordered, codes = self.levels.sort()
        return ordered, codes

    @cached_property
    def edges(self) -> Float[Tensor, " edges"]:
        """Return what lies halfway between neighbouring levels."""
        ordered, _ = self.ordered
        return (ordered[1:] + ordered[:-1]) / 2


@dataclass(frozen=True)
class Chosen:
    """What was chosen for columns."""

    codes: Int[Tensor, "columns rows"]
    values: Float[Tensor, "columns rows"]
    changes: Float[Tensor, "columns rows"]
    """Values less what was there before."""


def choose(
    wanted: Float[Tensor, "columns rows"],
    before: Float[Tensor, "columns rows"] | None,
    coupling: Float[Tensor, "columns columns"],
    grid: LevelGrid,
) -> Chosen:
    """Return the nearest values column by column; by the compiled kernels where they are there.

    before: what a change is counted from; None: from what is wanted, so that it is the error.
    coupling: a change of column a takes change x [a, j] from what is wanted of column j > a.
    """
    found = library()
    if found is None:
        places, values, changes = _by_torch(wanted, before, coupling, grid)
    else:
        places, values, changes = _by_kernels(found, wanted, before, coupling, grid)
    return Chosen(grid.ordered[1][places.int()], values, changes)


def _by_kernels(
    found: Library,
    wanted: Float[Tensor, "columns rows"],
    before: Float[Tensor, "columns rows"] | None,
    coupling: Float[Tensor, "columns columns"],
    grid: LevelGrid,
) -> tuple[Tensor, Tensor, Tensor]:
    given = (wanted, before, grid.scale, grid.offset)
    held = [None if one is None else one.float().contiguous() for one in given]
    kinds = (torch.uint8, torch.float32, torch.float32)
    places, values, changes = (torch.empty(wanted.shape, dtype=kind) for kind in kinds)
    tables = [one.contiguous() for one in (coupling, grid.ordered[0], grid.edges)]
    columns, rows = wanted.shape
    choice = Choice(*(address(one) for one in (*held, places, values, changes, *tables)),
                    columns, len(tables[1]), rows)  # fmt: skip
    checked(found.choose(ctypes.byref(choice), torch.get_num_threads()))
    return places, values, changes


def _by_torch(
    wanted: Float[Tensor, "columns rows"],
    before: Float[Tensor, "columns rows"] | None,
    coupling: Float[Tensor, "columns columns"],
    grid: LevelGrid,
) -> tuple[Tensor, Tensor, Tensor]:
    steps = torch.where(grid.scale == 0, torch.inf, grid.scale)
    levels = grid.ordered[0]
    wanted, places = wanted.clone(), torch.zeros(wanted.shape, dtype=torch.int64)
    values, changes = torch.empty_like(wanted), torch.empty_like(wanted)
    for at in range(len(wanted)):
        places[at] = torch.bucketize((wanted[at] - grid.offset[at]) / steps[at], grid.edges)
        values[at] = levels[places[at]] * grid.scale[at] + grid.offset[at]
        changes[at] = values[at] - (wanted if before is None else before)[at]
        wanted[at + 1 :] -= torch.outer(coupling[at, at + 1 :], changes[at])
    return places, values, changes
