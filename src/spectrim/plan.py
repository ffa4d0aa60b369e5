"""The plan: which site is stored how. A file that one can read, edit, compare and replay."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.formats import packed_format
from spectrim.formats.packed.trellis_matrix import UNIT
from spectrim.model.sites import Site

VERSION = 2


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
    trellis: int = 0
    """Bits that 16 numbers of a column take, where columns are paths through a trellis."""
    correction: int = 0
    """Rank of a product of two factors, in the checkpoint's dtype, that is added to it."""

    @property
    def stored_as(self) -> str:
        """Return the name of the format that stands where the matrix stood, or "dense"."""
        if self.packed:
            return packed_format(self.format, self.bits, self.trellis)
        return f"corrected_{self.format}" if self.correction else self.format

    @property
    def packed(self) -> bool:
        """Return whether it is stored in few bits."""
        return bool(self.bits or self.trellis)

    @property
    def rate(self) -> float:
        """Return how many bits a number takes, scales apart; 0 where it is as in the checkpoint."""
        return self.trellis / UNIT or self.bits

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
            replace(one, bits=0, group=0, symmetric=False, trellis=0, correction=0)
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
