"""The plan: which site is stored how. A file that one can read, edit, compare and replay."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.formats import formats, packed_format
from spectrim.formats.packed.scales import Grid
from spectrim.model.sites import Site

VERSION = 2


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
            formats.get(packed_format(name, grid.bits)).stored_bytes(shape, grid, dtype)
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


@dataclass(frozen=True)
class Decision:
    """How one site is stored."""

    site: str
    """By name, as every key of a checkpoint begins."""
    block: int
    """From 0, encoder and decoder apart; -1 outside the blocks."""
    role: str
    out_features: int
    in_features: int
    format: str
    """By name, as cut; "dense" where the matrix stays whole."""
    rank: int
    stored: int
    """How many numbers are stored, biases apart."""
    dense: int
    """How many numbers the matrix has."""
    predicted_loss: float
    """The site's share, nats per token; sites stored together carry theirs on the first of them."""
    method: str = ""
    """Which cut it; "" where it is not cut."""
    bias: bool = False
    """Whether a bias makes up for the mean of the inputs, also where the map had none."""
    owner: str = ""
    """The site that holds the basis that this one reads, where it has none of its own."""
    bits: int = 0
    """Of a stored number; 0: the checkpoint's own, 1: the whole matrix is two factors of signs."""
    group: int = 0
    """How many neighbours along the input share a scale and, unless symmetric, a zero point."""
    symmetric: bool = False
    correction: int = 0
    """Rank of a product of two factors, in the checkpoint's dtype, that is added to it."""

    @property
    def stored_as(self) -> str:
        """Return the name of the format that stands where the matrix stood, or "dense"."""
        if self.bits:
            return packed_format(self.format, self.bits)
        return f"corrected_{self.format}" if self.correction else self.format

    @property
    def replaced(self) -> bool:
        """Return whether anything but the matrix itself is stored."""
        return self.stored_as != "dense"


KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "no whole number"),
    "float": ((int, float), "no number"),
    "bool": ((bool,), "neither true nor false"),
    "str": ((str,), "no text"),
}
"""Of the fields of a decision: what JSON may hold there, and what is said of anything else."""


@dataclass(frozen=True)
class Plan:
    """All decisions, and what is needed to take them again: ``about`` names model, method, text."""

    decisions: tuple[Decision, ...]
    predicted_loss: float
    about: dict[str, Any]

    def __getitem__(self, site: str) -> Decision:
        """Return the decision for a site by its name; SpectrimError where there is none."""
        if site not in self._by_site:
            raise SpectrimError(f"the plan says nothing about {site}; bring a plan of this model")
        return self._by_site[site]

    @cached_property
    def _by_site(self) -> dict[str, Decision]:
        return {decision.site: decision for decision in self.decisions}

    def to_json(self) -> str:
        """Return the plan as JSON text, one decision a line, so that two plans can be compared."""
        head = {"version": VERSION, **self.about, "predicted_loss": self.predicted_loss}
        body = ",\n  ".join(json.dumps(asdict(decision)) for decision in self.decisions)
        return json.dumps(head, indent=1)[:-2] + ',\n "decisions": [\n  ' + body + "\n ]\n}\n"

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Return the plan in a file.

        Raises:
            SpectrimError: no such file, not JSON, or not a plan of this version.
        """
        try:
            data = json.loads(path.read_text())
            decisions = tuple(_decision(entry) for entry in data.pop("decisions"))
            version, loss = data.pop("version"), float(data.pop("predicted_loss"))
        except FileNotFoundError:
            raise SpectrimError(
                f"no plan at {path}; shrink writes plan.json into its output"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise SpectrimError(f"{path} is not a plan ({error}); expected plan.json") from None
        if version != VERSION:
            raise SpectrimError(f"{path} is a plan of version {version}; this reads {VERSION}")
        return cls(decisions, loss, data)

    def unquantised(self) -> Plan:
        """Return the plan as it was before numbers were stored in few bits and corrected."""
        plain = [
            replace(one, bits=0, group=0, symmetric=False, correction=0)
            if one.bits != 1
            else replace(one, bits=0, symmetric=False, stored=one.dense,
                         rank=min(one.out_features, one.in_features))
            for one in self.decisions
        ]  # fmt: skip
        return replace(self, decisions=tuple(plain))


def _decision(entry: dict[str, Any]) -> Decision:
    """Return a decision as it was read; ValueError where a field is of another kind."""
    for known in fields(Decision):
        kinds, called = KINDS[str(known.type)]
        value = (
            entry[known.name] if known.default is MISSING else entry.get(known.name, known.default)
        )
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{known.name} of {entry['site']} is {value!r} and {called}")
    return Decision(**entry)


def left_dense(site: Site) -> Decision:
    """Return the decision that leaves a site as it is."""
    numbers = site.out_features * site.in_features
    return Decision(
        site=site.name,
        block=site.block,
        role=site.role,
        out_features=site.out_features,
        in_features=site.in_features,
        format="dense",
        rank=min(site.out_features, site.in_features),
        stored=numbers,
        dense=numbers,
        predicted_loss=0.0,
    )
