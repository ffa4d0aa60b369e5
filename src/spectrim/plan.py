"""The plan: which site is stored how. A file that one can read, edit, compare and replay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, formats
from spectrim.model.sites import Site

VERSION = 2


@dataclass(frozen=True)
class Curve:
    """What one site, or sites that are stored together, offer: at each cut a size and a loss.

    Cuts are ordered by size; the last one is the dense matrix, with the largest rank and loss 0.
    ``sizes`` are in the unit of the budget (numbers or bytes), ``losses`` in nats per token.
    ``methods`` names the method of each cut but the dense one, "" for the whole matrix in fewer
    bits; ``bits`` are those of each such cut's numbers, 0 for the checkpoint's own, none where all
    are. ``values`` [full] are singular values, where one method alone gave them.
    """

    sites: tuple[Site, ...]
    ranks: Int[Tensor, " cuts"]
    sizes: Float[Tensor, " cuts"]
    losses: Float[Tensor, " cuts"]
    methods: tuple[str, ...] = ()
    values: Float[Tensor, " full"] | None = None
    bits: tuple[int, ...] = ()

    @property
    def site(self) -> Site:
        """Return the site, the first where there are several."""
        return self.sites[0]

    def is_dense(self, index: int) -> bool:
        """Return whether a cut is the dense matrix."""
        return index % len(self.ranks) == len(self.ranks) - 1


@dataclass(frozen=True)
class Decision:
    """How one site is stored: ``format`` at ``rank`` as ``method`` cut it, or "dense".

    bias: whether a bias makes up for the mean of the inputs, also where the map had none.
    owner: the site that holds the basis that this one reads, where it has none of its own.
    bits: of a stored number, 0 where they are the checkpoint's own; group: how many neighbours
    along the input share a step, and, unless symmetric, an offset.
    correction: rank of a product of two factors, in the checkpoint's dtype, that is added to it.
    predicted_loss is the site's share; sites stored together carry theirs on the first of them.
    """

    site: str
    block: int
    role: str
    out_features: int
    in_features: int
    format: str
    rank: int
    stored: int
    dense: int
    predicted_loss: float
    method: str = ""
    bias: bool = False
    owner: str = ""
    bits: int = 0
    group: int = 0
    symmetric: bool = False
    correction: int = 0

    @property
    def module(self) -> str:
        """Return the name of the format that stands where the matrix stood, or "dense"."""
        if self.bits:
            return f"quantized_{self.format}"
        return f"corrected_{self.format}" if self.correction else self.format

    @property
    def replaced(self) -> bool:
        """Return whether anything but the matrix itself is stored."""
        return self.module != "dense"


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
        plain = (
            replace(one, bits=0, group=0, symmetric=False, correction=0) for one in self.decisions
        )
        return replace(self, decisions=tuple(plain))

    def named(self) -> Plan:
        """Return the plan with a method for every cut, the first of those that made the plan."""
        first = str(self.about.get("method", "")).partition(",")[0]
        decisions = tuple(
            one if one.method or one.format == "dense" else replace(one, method=first)
            for one in self.decisions
        )
        return replace(self, decisions=decisions)

    def restated(self, curves: list[Curve], centred: Callable[[str], bool]) -> Plan:
        """Return the plan with all that follows from its choices, after an edit of them.

        A rank between two cuts of its curve is predicted to lose what the smaller one does.
        centred: whether a method of this name sees centred inputs, so that a bias is due.
        """
        known = {(curve.site.name, method): curve for curve in curves for method in curve.methods}
        owners = {
            (site.name, method): curve.site.name
            for curve in curves
            for method in curve.methods
            for site in curve.sites
        }
        decisions = tuple(
            _dense(one) if one.format == "dense" else _restated(one, known, owners, centred)
            for one in self.decisions
        )
        return replace(self, decisions=decisions, predicted_loss=_total(decisions))

    def check(self, sites: list[Site]) -> None:
        """Raise SpectrimError where the plan does not fit these sites or their shapes."""
        for name in {one.format for one in self.decisions} - {"dense"}:
            formats.check(name)
        shapes = {site.name: (site.out_features, site.in_features) for site in sites}
        for decision in self.decisions:
            found = shapes.pop(decision.site, None)
            if found != (decision.out_features, decision.in_features):
                raise SpectrimError(
                    f"the plan does not fit the model: {decision.site} is "
                    f"{decision.out_features} x {decision.in_features} in the plan and "
                    + (f"{found[0]} x {found[1]} in the model" if found else "not in the model")
                )
            form = None if decision.format == "dense" else formats.get(decision.format)
            largest = form.largest(*found) if form else min(found)
            if not 0 < decision.rank <= largest:
                raise SpectrimError(
                    f"the plan gives {decision.site} rank {decision.rank}; expected 1 to {largest}"
                    + _excess(decision, form)
                )
        if shapes:
            raise SpectrimError(f"the plan says nothing about {next(iter(shapes))}")


def _excess(decision: Decision, form: type[FactoredLinear] | None) -> str:
    """Return what a rank that is too large would store, where that is more than the matrix."""
    shape = (decision.out_features, decision.in_features)
    numbers = form.numbers(*shape, decision.rank) if form and decision.rank > 0 else 0
    dense = shape[0] * shape[1]
    said = f": as {decision.format} it would store {numbers} numbers, the matrix {dense}"
    return said if numbers > dense else ""


def _decision(entry: dict[str, Any]) -> Decision:
    for name in ("rank", "out_features", "in_features"):
        if not isinstance(entry[name], int):
            raise ValueError(f"{name} of {entry['site']} is {entry[name]!r} and no whole number")
    return Decision(**entry)


def _dense(decision: Decision) -> Decision:
    whole = decision.out_features * decision.in_features
    return replace(
        decision,
        rank=min(decision.out_features, decision.in_features),
        stored=whole,
        dense=whole,
        predicted_loss=0.0,
        method="",
        bias=False,
        owner="",
    )


def _restated(
    decision: Decision,
    known: dict[tuple[str, str], Curve],
    owners: dict[tuple[str, str], str],
    centred: Callable[[str], bool],
) -> Decision:
    form: type[FactoredLinear] = formats.get(decision.format)
    curve = known.get((decision.site, decision.method))  # none for what a group's first carries
    loss = 0.0
    if curve is not None:
        cuts = curve.ranks[:-1]  # the dense one may have the rank of a cut
        loss = float(curve.losses[max(int((cuts <= decision.rank).sum()) - 1, 0)])
    return replace(
        decision,
        stored=form.numbers(decision.out_features, decision.in_features, decision.rank),
        dense=decision.out_features * decision.in_features,
        predicted_loss=loss,
        bias=centred(decision.method),
        owner=owners.get((decision.site, decision.method), "") if form.follows else "",
    )


def _total(decisions: tuple[Decision, ...]) -> float:
    return sum(decision.predicted_loss for decision in decisions)


def thin(curve: Curve, points: int = 64) -> dict[str, list[float]]:
    """Return at most ``points`` cuts of a curve, evenly spaced, the dense one last."""
    step = torch.linspace(0, len(curve.ranks) - 1, min(points, len(curve.ranks))).round().long()
    return {
        "ranks": curve.ranks[step].tolist(),
        "sizes": curve.sizes[step].tolist(),
        "losses": [float(f"{loss:.4g}") for loss in curve.losses[step].tolist()],
    }


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
